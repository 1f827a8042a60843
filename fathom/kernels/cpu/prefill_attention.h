// Attention of long chunks, in its naive form: keys and values of every head are expanded from the latents.
//
//   k[key] = (W^UK latent[key], k_rope[key])      v[key] = W^UV latent[key]
//   o = softmax(scale q . k) v
//
// Per query and key that is N + R + V multiplications a head instead of 2 C + R; expanding costs C (N + V) per key and
// is shared by all queries of the chunk. Each round (plan.h) has three phases:
//   1  latents and rope keys read from their pages, as rows and as panels of keys
//   2  per head: keys as panels [N + R][PANEL keys], values as panels [keys][PANEL columns]
//   3  per head and QUERIES tokens: over blocks of keys scores, softmax so far, weighted values
// Keys that a tile of tokens cannot see are skipped. The softmax keeps its largest score and its sum; when a block
// brings a larger one, what was added before is scaled down. Blocks begin at fixed keys, so rounds change no bit.
#pragma once

#include "attention.h"
#include "plan.h"

namespace fathom {

struct Prefill : Work {
    const Plan* plan;
    int64_t phase;
    // rows of common buffers, as lists
    float **normed_rows, **q_a_rows, **kv_rows, **q_rows, **o_rows, **logits_rows, **shared_rows, **x_rows;
    // keys of a round
    Buffer latents, rope_keys;
    float *latent_panels, *rope_panels;  // [panel][C, padded][PANEL], [panel][R, padded][PANEL]
    float *keys, *values;                // [head][panel][N + R][PANEL], [head][panel of V][key][PANEL]
    float *top, *sum;                    // [T, H]: the softmax after the rounds so far; w.o holds its weighted values
    // this thread's own
    float* panel;
    Buffer gate, up;                     // [T, PANEL]
    float **gate_rows, **up_rows;
    Buffer up_k;                         // W^UK of a head as FP32 rows
    float **up_k_rows, **key_rows;
    Buffer query, score, mixed;          // [QUERIES, ...]
    const float** expert_x;              // per pair, in order of experts
    float** hidden_rows;

    // The end of a phase. Of three queues one is in use, one may still be looked at by a late thread, one is free.
    void next() {
        team.wait();
        ++phase;
        team.rewind(static_cast<Queue>((phase + 1) % 3));
    }
    // The next item of this phase.
    int64_t take() const { return team.take(static_cast<Queue>(phase % 3)); }
};

// ---- keys -----------------------------------------------------------------------------------------------------------

inline void read_keys(const Block& b, const Pool& p, const Step& step, const Prefill& w, const KeyGroup& g) {
    const Matrix latents = latents_of(b, p), ropes = rope_keys_of(b, p);
    int64_t place = g.place;
    each_run(step, p, w.plan->spans[g.span].begin, g.key, g.key + g.count, [&](int64_t row, int64_t, int64_t n) {
        for (int64_t i = 0; i < n; ++i, ++place) {
            decode_row(latents, row + i, w.latents.row(place));
            decode_row(ropes, row + i, w.rope_keys.row(place));
        }
    });
    const auto turn = [&](const Buffer& rows, int64_t cols, float* panels) {
        const Matrix m{rows.data, nullptr, g.place + g.count, rows.stride, KIND_F32, 1, 1, 0};
        for (int64_t i = 0; i < g.count; i += PANEL)
            pack_as<F32>(m, g.place + i, std::min<int64_t>(PANEL, g.count - i), 0, cols,
                         panels + (g.place + i) * padded(cols));
    };
    turn(w.latents, b.latent, w.latent_panels);
    turn(w.rope_keys, b.rope, w.rope_panels);
}

INLINE float* key_panel(const Block& b, const Prefill& w, int64_t head, int64_t place) {
    return w.keys + (head * w.plan->keys + place) * (b.nope + b.rope);
}
INLINE float* value_row(const Block& b, const Prefill& w, int64_t head, int64_t panel, int64_t place) {
    return w.values + ((head * panels_of(b.value) + panel) * w.plan->keys + place) * PANEL;
}

// W^UK of a head as rows; FP32 is read where it lies.
inline void read_up_k(const Block& b, const Prefill& w, int64_t head) {
    const int64_t first = head * (b.nope + b.value);
    for (int64_t i = 0; i < b.nope; ++i) {
        w.up_k_rows[i] = w.up_k.row(i);
        if (b.kv_b.kind != KIND_F32) decode_row(b.kv_b, first + i, w.up_k.row(i));
        else w.up_k_rows[i] = const_cast<float*>(static_cast<const float*>(b.kv_b.data)) + (first + i) * b.latent;
    }
}

inline void expand_keys(const Block& b, const Prefill& w, const KeyGroup& g, int64_t head) {
    for (int64_t place = g.place; place < g.place + g.count; place += PANEL) {
        float* const to = key_panel(b, w, head, place);
        for (int64_t i = 0; i < b.nope; ++i) w.key_rows[i] = to + i * PANEL;
        multiply_panel(w.latent_panels + place * padded(b.latent), 0, b.latent, b.nope, w.up_k_rows, w.key_rows, 0,
                       false);
        std::memcpy(to + b.nope * PANEL, w.rope_panels + place * padded(b.rope), b.rope * PANEL * sizeof(float));
    }
    const float* x[KEY_BLOCK];
    float* y[KEY_BLOCK];
    for (int64_t i = 0; i < g.count; ++i) x[i] = w.latents.row(g.place + i);
    for (int64_t panel = 0; panel < panels_of(b.value); ++panel) {
        const int64_t first = panel * PANEL, n = std::min<int64_t>(PANEL, b.value - first);
        for (int64_t i = 0; i < g.count; ++i) y[i] = value_row(b, w, head, panel, g.place + i);
        const int64_t row = head * (b.nope + b.value) + b.nope + first;
        multiply(b.kv_b, row, n, g.count, x, y, 0, false, true, w.panel, row + PANEL);
    }
}

// ---- queries --------------------------------------------------------------------------------------------------------

// Scores of `seen` keys become weights, those up to n zero; o, the weighted values so far, is scaled to the new top.
INLINE void soften(float* score, int64_t seen, int64_t n, float& top, float& sum, float* o, int64_t width) {
    if (seen == 0) {
        std::memset(score, 0, n * sizeof(float));
        return;
    }
    vf highest[2] = {splat(top), splat(top)}, sums[4] = {};
    float total[4];
    const int64_t whole = (seen + 2 * W - 1) / (2 * W) * (2 * W);
    for (int64_t i = seen; i < whole; ++i) score[i] = -__builtin_inff();
    for (int64_t i = 0; i < whole; i += 2 * W)
        for (int j = 0; j < 2; ++j) highest[j] = larger(highest[j], load(score + i + j * W));
    highest[0] = larger(highest[0], highest[1]);
    float now = highest[0][0];
    for (int lane = 1; lane < W; ++lane) now = now > highest[0][lane] ? now : highest[0][lane];
    if (now > top) {
        const float factor = sum == 0 ? 0 : exp(splat(top - now))[0];
        for (int64_t i = 0; i < width; i += W) store(o + i, load(o + i) * factor);
        sum *= factor;
        top = now;
    }
    // e^x is never quite zero: the weights of keys that are not seen are cleared afterwards, and not summed.
    int64_t i = 0;
    for (; i + 2 * W <= seen; i += 2 * W)
        for (int j = 0; j < 2; ++j) {
            const vf weight = exp(load(score + i + j * W) - top);
            store(score + i + j * W, weight);
            sums[j] += weight;
        }
    for (; i < seen; i += W) {
        vf weight = exp(load(score + i) - top);
        for (int64_t lane = seen - i; lane < W; ++lane) weight[lane] = 0;
        store(score + i, weight);
        sums[0] += weight;
    }
    if (i < n) std::memset(score + i, 0, (n - i) * sizeof(float));
    sums[0] += sums[1];
    sum_lanes(sums, total);
    sum += total[0];
}

inline void attend_block(const Block& b, const Step& step, const Prefill& w, const QueryBlock& block, int64_t head) {
    const Span& s = w.plan->spans[block.span];
    const int64_t width = b.nope + b.rope, half = b.rope / 2, value_panels = panels_of(b.value);
    const float* q[QUERIES];
    float *score[QUERIES], *o[QUERIES], top[QUERIES], sum[QUERIES];
    int64_t limit[QUERIES];  // keys of the span that a token sees
    for (int64_t i = 0; i < block.count; ++i) {
        const int64_t t = block.begin + i;
        const float* const from = w.q.row(t) + head * width;
        float* const to = w.query.row(i);
        for (int64_t k = 0; k < b.nope; ++k) to[k] = from[k] * b.scale;
        rotate(from + b.nope, step.cos + t * half, step.sin + t * half, b.rope, b.scale, to + b.nope);
        q[i] = to, score[i] = w.score.row(i), o[i] = w.mixed.row(i);
        limit[i] = std::min<int64_t>(s.high, std::max<int64_t>(s.low, step.last_key[t])) - s.low;
        top[i] = s.first ? -__builtin_inff() : w.top[t * b.heads + head];
        sum[i] = s.first ? 0 : w.sum[t * b.heads + head];
        if (s.first) std::memset(o[i], 0, value_panels * PANEL * sizeof(float));
        else std::memcpy(o[i], w.o.row(t) + head * b.value, b.value * sizeof(float));
    }
    const int64_t most = limit[block.count - 1];
    for (int64_t low = 0; low < most; low += KEY_BLOCK) {
        const int64_t n = std::min(KEY_BLOCK, most - low), space = (n + PANEL - 1) / PANEL * PANEL;
        for (int64_t i = 0; i < n; i += PANEL) {
            const float* const keys = key_panel(b, w, head, s.place + low + i);
            each_tile(block.count, [&](int64_t t, int64_t count) {
                if (limit[t + count - 1] > low + i) tile_of(count)(q + t, 0, width, keys, score + t, i, false);
            });
        }
        for (int64_t i = 0; i < block.count; ++i)
            soften(score[i], std::max<int64_t>(0, std::min(n, limit[i] - low)), space, top[i], sum[i], o[i],
                   value_panels * PANEL);
        for (int64_t panel = 0; panel < value_panels; ++panel) {
            const float* const values = value_row(b, w, head, panel, s.place + low);
            each_tile(block.count, [&](int64_t t, int64_t count) {
                const int64_t depth = std::min(n, limit[t + count - 1] - low);
                if (depth > 0) tile_of(count)(score + t, 0, depth, values, o + t, panel * PANEL, true);
            });
        }
    }
    const bool last = step.last_key[block.begin + block.count - 1] <= s.high;
    for (int64_t i = 0; i < block.count; ++i) {
        const int64_t t = block.begin + i;
        const float factor = !last ? 1.f : sum[i] == 0 ? 0.f : 1.f / sum[i];
        float* const to = w.o.row(t) + head * b.value;
        for (int64_t k = 0; k < b.value; ++k) to[k] = o[i][k] * factor;
        w.top[t * b.heads + head] = top[i];
        w.sum[t * b.heads + head] = sum[i];
    }
}

inline void attend_rounds(const Block& b, const Pool& p, const Step& step, Prefill& w) {
    for (const Round& round : w.plan->rounds) {
        const int64_t groups = round.last_group - round.first_group, blocks = round.last_block - round.first_block;
        for (int64_t i = w.take(); i < groups; i = w.take())
            read_keys(b, p, step, w, w.plan->groups[round.first_group + i]);
        w.next();
        int64_t held = -1;
        for (int64_t i = w.take(); i < groups * b.heads; i = w.take()) {
            if (i / groups != held) read_up_k(b, w, held = i / groups);
            expand_keys(b, w, w.plan->groups[round.first_group + i % groups], held);
        }
        w.next();
        for (int64_t i = w.take(); i < blocks * b.heads; i = w.take())  // the longest first
            attend_block(b, step, w, w.plan->blocks[round.last_block - 1 - i / b.heads], i % b.heads);
        w.next();
    }
}

}  // namespace fathom
