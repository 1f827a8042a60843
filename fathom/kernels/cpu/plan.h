// Which tokens of a step are a long chunk of a prompt, and in which order their keys go by.
//
// A step is cut into segments: consecutive tokens of one sequence. A long segment goes through prefill.h, which
// prepares weights and keys before it uses them; all others (decoding, verification, a few new words after a long
// context) go through the phases of block.cpp, by themselves. The choice looks at the segment alone, and neither way
// lets tokens of different sequences meet in a sum: company changes no bit of anybody's result. What can change FP32's
// last bits is how a prompt is cut: a piece that is short, or sees many old keys, goes another way than a long one.
//
// Keys are expanded in rounds, as many at a time as fit the scratch memory. A round holds spans (consecutive keys of
// one segment) and the blocks of queries that look at them; short segments share a round.
#pragma once

#include <new>
#include <vector>

#include "panel.h"
#include "work.h"

namespace fathom {

constexpr int64_t LONG_SEGMENT = 48;    // tokens; below, preparing weights does not pay (measured on a small mixture)
constexpr double LONG_SPEED = 1.5;      // how much faster prefill.h multiplies than block.cpp (measured)
constexpr int64_t KEY_BLOCK = 128;      // keys of a softmax section in prefill
constexpr int64_t QUERIES = 24;         // tokens that go over the keys together
constexpr int64_t KEY_SPACE = 4 << 20;  // floats of expanded keys and values in a round
constexpr int64_t MAX_KEYS = 2048;      // of a round

struct Segment {
    int64_t begin, end;  // tokens of the step
    int64_t low, high;   // keys that the last token sees
};

inline std::vector<Segment> segments_of(const Step& step) {
    std::vector<Segment> all;
    for (int64_t t = 0; t < step.tokens; ++t) {
        const bool goes_on = t && step.rows[t] == step.rows[t - 1] && step.last_key[t] == step.last_key[t - 1] + 1;
        if (!goes_on) all.push_back({t, t, step.first_key, 0});
        all.back().end = t + 1;
        all.back().high = step.last_key[t];
    }
    return all;
}

// Multiplications of attention by expanding every key, or by folding the expansion into the queries.
inline bool is_long(const Segment& s, const Block& b) {
    const double fresh = s.end - s.begin, keys = s.high - s.low, pairs = fresh * (keys - (fresh - 1) / 2);
    const double expand = static_cast<double>(b.latent) * (b.nope + b.value);
    const double naive = keys * expand + pairs * (b.nope + b.rope + b.value);
    const double absorbed = fresh * expand + pairs * (2 * b.latent + b.rope);
    return fresh >= LONG_SEGMENT && keys >= fresh && naive <= LONG_SPEED * absorbed;
}

// ---- rounds ---------------------------------------------------------------------------------------------------------

struct Span {
    int64_t begin, end;  // tokens of the segment
    int64_t low, high;   // keys
    int64_t place;       // of key `low` in the scratch memory, whole panels
    bool first;          // of its segment
};

struct QueryBlock {
    int64_t span, begin, count;
};

struct KeyGroup {
    int64_t span, key, place, count;  // at most KEY_BLOCK keys
};

struct Round {
    int64_t first_block, last_block, first_group, last_group;
};

struct Plan {
    std::vector<Span> spans;
    std::vector<QueryBlock> blocks;
    std::vector<KeyGroup> groups;
    std::vector<Round> rounds;
    int64_t keys = 0;  // places of the largest round

    void open() {
        const int64_t b = static_cast<int64_t>(blocks.size()), g = static_cast<int64_t>(groups.size());
        rounds.push_back({b, b, g, g});
    }

    void add(const Step& step, const Span& span) {
        const int64_t index = static_cast<int64_t>(spans.size());
        spans.push_back(span);
        for (int64_t t = span.begin; t < span.end; t += QUERIES) {
            const int64_t count = std::min(QUERIES, span.end - t);
            if (span.first || step.last_key[t + count - 1] > span.low) blocks.push_back({index, t, count});
        }
        for (int64_t key = span.low; key < span.high; key += KEY_BLOCK)
            groups.push_back({index, key, span.place + key - span.low, std::min(KEY_BLOCK, span.high - key)});
        rounds.back().last_block = static_cast<int64_t>(blocks.size());
        rounds.back().last_group = static_cast<int64_t>(groups.size());
    }

    // All tokens of `step` belong to long segments; `width`: floats of one expanded key, with its value, of all heads.
    Plan(const Step& step, int64_t width) {
        const int64_t most = std::max<int64_t>(1, std::min(MAX_KEYS, KEY_SPACE / width) / KEY_BLOCK) * KEY_BLOCK;
        int64_t place = 0;
        open();
        for (const Segment& s : segments_of(step))
            for (int64_t low = s.low; low < s.high;) {
                if (most - place < KEY_BLOCK) open(), place = 0;
                const int64_t high = std::min(s.high, low + (most - place) / KEY_BLOCK * KEY_BLOCK);
                add(step, {s.begin, s.end, low, high, place, low == s.low});
                place += panels_of(high - low) * PANEL;
                keys = std::max(keys, place);
                low = high;
            }
    }
};

// ---- the two halves of a step ---------------------------------------------------------------------------------------

// Some tokens of a step as a step of their own.
struct Part {
    Step step;
    std::vector<int64_t> tokens, slots;
    std::vector<int32_t> rows, last_key;
    std::vector<float> cos, sin, x;

    Part(const Step& whole, const std::vector<int64_t>& which, int64_t half, const float* from, int64_t hidden)
        : step(whole), tokens(which) {
        for (const int64_t t : tokens) {
            slots.push_back(whole.slots[t]);
            rows.push_back(whole.rows[t]);
            last_key.push_back(whole.last_key[t]);
            cos.insert(cos.end(), whole.cos + t * half, whole.cos + (t + 1) * half);
            sin.insert(sin.end(), whole.sin + t * half, whole.sin + (t + 1) * half);
            x.insert(x.end(), from + t * hidden, from + (t + 1) * hidden);
        }
        step.tokens = static_cast<int64_t>(tokens.size());
        step.slots = slots.data(), step.rows = rows.data(), step.last_key = last_key.data();
        step.cos = cos.data(), step.sin = sin.data();
    }
};

// Tokens of long segments, and the others. A sequence in several segments: nothing is long, for their order counts.
inline void split(const Step& step, const Block& b, std::vector<int64_t>& long_tokens, std::vector<int64_t>& others) {
    std::vector<char> seen(step.sequences);
    const std::vector<Segment> segments = segments_of(step);
    bool once = true;
    for (const Segment& s : segments) {
        once = once && !seen[step.rows[s.begin]];
        seen[step.rows[s.begin]] = 1;
    }
    for (const Segment& s : segments)
        for (int64_t t = s.begin; t < s.end; ++t) (once && is_long(s, b) ? long_tokens : others).push_back(t);
}

}  // namespace fathom
