// Multi-head Latent Attention in its absorbed form, over pages of cached latents.
//
//   q~ = W^UK^T q_nope                      per head: the query against latents instead of keys
//   score[key] = q~ . latent[key] + q_rope . k_rope[key]
//   z = softmax(scale score) latents        o = W^UV z
//
// Keys go by in sections of 64: scores, their maximum, weights, the weighted sum of latents. Sections are merged by the
// usual rule for partial softmaxes into parts, parts into the whole. Where sections and parts begin depends on the number
// of keys alone, and they are merged in order, so the result does not depend on who computed what: with few tokens and
// many threads an item is one part of one token's keys (merged later, by head_values), else all of them.
//
// An item covers four heads: a latent is loaded and decoded once for four.
#pragma once

#include "work.h"

namespace fathom {

constexpr int64_t SECTION = 64;    // keys
constexpr int64_t MAX_PARTS = 32;  // of one token's keys

INLINE int64_t keys_per_part(int64_t keys) {
    const int64_t sections = (keys + SECTION - 1) / SECTION;
    return std::max<int64_t>(1, (sections + MAX_PARTS - 1) / MAX_PARTS) * SECTION;
}
INLINE int64_t parts_of(int64_t keys) { return (keys + keys_per_part(keys) - 1) / keys_per_part(keys); }

// A softmax over some keys, not divided yet: sum of e^(score - top), and the latents weighted by that.
struct Partial {
    float* z;
    float top = -__builtin_inff(), sum = 0;  // sum 0: no keys

    void add(const Partial& other, int64_t n) {
        if (other.sum == 0) return;
        const float highest = top < other.top || sum == 0 ? other.top : top;
        const float mine = sum == 0 ? 0 : top == highest ? 1 : exp(splat(top - highest))[0];
        const float its = other.top == highest ? 1 : exp(splat(other.top - highest))[0];
        for (int64_t k = 0; k < padded(n); k += W) {
            const vf scaled = load(other.z + k) * its;
            store(z + k, sum == 0 ? scaled : fma(load(z + k), splat(mine), scaled));
        }
        sum = sum * mine + other.sum * its;
        top = highest;
    }
};

INLINE Matrix latents_of(const Block& b, const Pool& p) {
    return {p.latent, p.scale, p.pages * p.page_size, b.latent, p.latent_kind, 1, static_cast<int32_t>(LATENT_TILE), 0};
}
INLINE Matrix rope_keys_of(const Block& b, const Pool& p) {
    return {p.k_rope, nullptr, p.pages * p.page_size, b.rope, p.rope_kind, 1, 1, 0};
}

// Rotates adjacent pairs.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t n, float factor, float* y) {
    for (int64_t i = 0; i < n / 2; ++i) {
        const float even = x[2 * i] * factor, odd = x[2 * i + 1] * factor;
        y[2 * i] = even * cos[i] - odd * sin[i];
        y[2 * i + 1] = even * sin[i] + odd * cos[i];
    }
}

// ---- writing the cache ----------------------------------------------------------------------------------------------

inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Nearest E4M3 code, ties to even; |x| <= 448.
inline uint8_t to_fp8(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 24 & 0x80;
    bits &= 0x7fffffffu;
    if (bits < 0x3c800000u) {  // below 2^-6: steps of 2^-9, found by adding a number whose last bit is worth that
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0x1p14f;
        std::memcpy(&bits, &magnitude, 4);
        return static_cast<uint8_t>(sign | (bits & 0xf));
    }
    bits += 0x7ffffu + (bits >> 20 & 1);
    return static_cast<uint8_t>(sign | ((bits >> 20) - 960));
}

inline void store_values(int32_t kind, const float* x, int64_t n, int64_t row, void* to) {
    if (kind == KIND_F32) std::memcpy(static_cast<float*>(to) + row * n, x, n * sizeof(float));
    else
        for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[row * n + i] = to_bf16(x[i]);
}

inline void store_fp8(const float* x, int64_t n, int64_t row, const Pool& p) {
    float* const scales = p.scale + row * ((n + LATENT_TILE - 1) / LATENT_TILE);
    uint8_t* const to = static_cast<uint8_t*>(p.latent) + row * n;
    for (int64_t begin = 0; begin < n; begin += LATENT_TILE) {
        const int64_t end = std::min(begin + LATENT_TILE, n);
        float top = 1e-4f;  // see reference.AMAX_FLOOR
        for (int64_t i = begin; i < end; ++i) top = std::max(top, __builtin_fabsf(x[i]));
        const float scale = top / 448.f;
        scales[begin / LATENT_TILE] = scale;
        for (int64_t i = begin; i < end; ++i) to[i] = to_fp8(std::max(-448.f, std::min(448.f, x[i] / scale)));
    }
}

// Norm, rotation and storage of token t's latent and rope key from kv_a's raw output.
inline void store_latent(const Block& b, const Pool& p, const Step& step, const Work& w, int64_t t) {
    const int64_t slot = step.slots[t], half = b.rope / 2;
    float *const raw = w.kv.row(t), *const normed = w.rows.row(0), *const rotated = w.rows.row(1);
    rms_norm(raw, b.kv_a_bias, b.kv_a_norm, b.latent_eps, b.latent, normed);
    if (p.latent_kind == KIND_FP8) store_fp8(normed, b.latent, slot, p);
    else store_values(p.latent_kind, normed, b.latent, slot, p.latent);
    float* const key = raw + b.latent;
    if (b.kv_a_bias)
        for (int64_t i = 0; i < b.rope; ++i) key[i] += b.kv_a_bias[b.latent + i];
    rotate(key, step.cos + t * half, step.sin + t * half, b.rope, 1, rotated);
    store_values(p.rope_kind, rotated, b.rope, slot, p.k_rope);
}

// ---- queries --------------------------------------------------------------------------------------------------------

template <class K>
void absorb(const Block& b, const Work& w, int64_t head, int64_t t, int64_t count, float* const* y) {
    const float* c[TOKENS];
    for (int64_t s = 0; s < count; ++s) c[s] = w.q.row(t + s) + head * (b.nope + b.rope);
    const Rows<K> m(b.kv_b);
    const int64_t first = head * (b.nope + b.value);
    if (count == TOKENS) mix<K, TOKENS>(m, first, b.nope, c, y);
    else
        for (int64_t s = 0; s < count; ++s) mix<K, 1>(m, first, b.nope, c + s, y + s);
}

// Queries of one head for all tokens: q_b (unless q is there already), rotation, absorption of W^UK; scaled and in the
// layouts of the cache.
inline void head_queries(const Block& b, const Pool& p, const Step& step, const Work& w, int64_t head) {
    const int64_t width = b.nope + b.rope, half = b.rope / 2;
    if (b.q_a.data)
        linear(b.q_b, head * width, (head + 1) * width, w.tokens, w.rows_of(w.q_latent), w.outputs(w.q, head * width));
    for (int64_t t = 0; t < w.tokens; t += TOKENS) {
        const int64_t count = std::min<int64_t>(TOKENS, w.tokens - t);
        float* y[TOKENS];
        for (int64_t s = 0; s < count; ++s) {
            y[s] = w.rows.row(s);
            std::memset(y[s], 0, padded(b.latent) * sizeof(float));
        }
        if (b.kv_b.kind == KIND_F32) absorb<F32>(b, w, head, t, count, y);
        else if (b.kv_b.kind == KIND_BF16) absorb<BF16>(b, w, head, t, count, y);
        else absorb<FP8>(b, w, head, t, count, y);
        float *const flat = w.more_rows.row(0), *const turned = w.more_rows.row(1);
        for (int64_t s = 0; s < count; ++s) {
            const int64_t row = (t + s) * b.heads + head, at = (t + s) * half;
            unlayout(b.kv_b.kind, y[s], b.latent, b.scale, flat);
            layout(p.latent_kind, flat, b.latent, 1, w.query.row(row));
            rotate(w.q.row(t + s) + head * width + b.nope, step.cos + at, step.sin + at, b.rope, b.scale, turned);
            layout(p.rope_kind, turned, b.rope, 1, w.query_rope.row(row));
        }
    }
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Keys low .. high of a sequence, run by run: f(first row in the pool, first key, count), a run lies in one page.
template <class F>
INLINE void each_run(const Step& step, const Pool& p, int64_t t, int64_t low, int64_t high, F f) {
    const int32_t* const pages = step.page_table + step.rows[t] * step.pages_per_sequence;
    for (int64_t key = low; key < high;) {
        const int64_t offset = key % p.page_size, count = std::min(p.page_size - offset, high - key);
        f(pages[key / p.page_size] * p.page_size + offset, key, count);
        key += count;
    }
}

template <class L, class R, int KEY_TILE, int S>
INLINE void score_tile(const Rows<L>& latents, const Rows<R>& ropes, int64_t row, const float* const* q,
                       const float* const* q_rope, float* scores) {
    vf total[KEY_TILE][S] = {};
    float out[(KEY_TILE * S + 3) / 4 * 4];
    dot_rows<L, KEY_TILE, S>(latents, row, q, total);
    dot_rows<R, KEY_TILE, S>(ropes, row, q_rope, total);
    sum_tile<KEY_TILE, S>(total, out);
    for (int s = 0; s < S; ++s)
        for (int key = 0; key < KEY_TILE; ++key) scores[s * SECTION + key] = out[key * S + s];
}

// Keys low .. high, at most a section, of S heads of token t, from head `head` on.
template <class L, class R, int S>
void attend_section(const Block& b, const Pool& p, const Step& step, const Work& w, int64_t t, int64_t head,
                    int64_t low, int64_t high, Partial* out) {
    constexpr int KEY_TILE = tile_rows(S);
    const Rows<L> latents(latents_of(b, p));
    const Rows<R> ropes(rope_keys_of(b, p));
    const int64_t count = high - low;
    const float *q[S], *q_rope[S];
    alignas(64) float scores[S * SECTION];
    for (int s = 0; s < S; ++s) {
        q[s] = w.query.row(t * b.heads + head + s);
        q_rope[s] = w.query_rope.row(t * b.heads + head + s);
    }
    each_run(step, p, t, low, high, [&](int64_t row, int64_t key, int64_t n) {
        float* const to = scores + (key - low);
        int64_t i = 0;
        for (; i + KEY_TILE <= n; i += KEY_TILE)
            score_tile<L, R, KEY_TILE, S>(latents, ropes, row + i, q, q_rope, to + i);
        for (; i < n; ++i) score_tile<L, R, 1, S>(latents, ropes, row + i, q, q_rope, to + i);
    });
    float* z[S];
    for (int s = 0; s < S; ++s) {
        float* const score = scores + s * SECTION;
        const float top = *std::max_element(score, score + count);
        vf sums[4] = {};
        float sum[4];
        for (int64_t i = 0; i < count; i += W) {
            vf weight = exp(load(score + i) - top);
            for (int64_t lane = count - i; lane < W; ++lane) weight[lane] = 0;
            store(score + i, weight);
            sums[0] += weight;
        }
        sum_lanes(sums, sum);
        out[s].top = top;
        out[s].sum = sum[0];
        z[s] = out[s].z;
        std::memset(z[s], 0, padded(b.latent) * sizeof(float));
    }
    each_run(step, p, t, low, high, [&](int64_t row, int64_t key, int64_t n) {
        const float* weights[S];
        for (int s = 0; s < S; ++s) weights[s] = scores + s * SECTION + (key - low);
        mix<L, S>(latents, row, n, weights, z);
    });
}

// Parts first .. last of the keys of S heads of a token, into the stored row `to` of each.
template <class L, class R, int S>
void attend(const Block& b, const Pool& p, const Step& step, const Work& w, int64_t t, int64_t head, int64_t first,
            int64_t last, int64_t to) {
    const int64_t keys = std::max<int64_t>(0, step.last_key[t] - step.first_key), length = keys_per_part(keys);
    Partial total[S];
    for (int s = 0; s < S; ++s) total[s].z = w.part.row((t * b.heads + head + s) * w.parts + to);
    for (int64_t part = first; part < last; ++part) {
        const int64_t begin = step.first_key + part * length, end = std::min(begin + length, step.first_key + keys);
        Partial whole[S];
        for (int s = 0; s < S; ++s) whole[s].z = w.rows.row(s);
        for (int64_t low = begin; low < end; low += SECTION) {
            Partial section[S];
            for (int s = 0; s < S; ++s) section[s].z = w.more_rows.row(s);
            attend_section<L, R, S>(b, p, step, w, t, head, low, std::min(low + SECTION, end), section);
            for (int s = 0; s < S; ++s) whole[s].add(section[s], b.latent);
        }
        for (int s = 0; s < S; ++s) total[s].add(whole[s], b.latent);
    }
    for (int s = 0; s < S; ++s) {
        const int64_t row = (t * b.heads + head + s) * w.parts + to;
        w.part_top[row] = total[s].top;
        w.part_sum[row] = total[s].sum;
    }
}

template <class L, class R>
void attend_heads(const Block& b, const Pool& p, const Step& step, const Work& w, int64_t t, int64_t head,
                  int64_t first, int64_t last, int64_t to) {
    if (head + TOKENS <= b.heads) attend<L, R, TOKENS>(b, p, step, w, t, head, first, last, to);
    else
        for (; head < b.heads; ++head) attend<L, R, 1>(b, p, step, w, t, head, first, last, to);
}

// How many parts to store: one if there are items enough without.
inline int64_t parts_stored(const Step& step, int64_t heads, int threads) {
    const int64_t items = step.tokens * ((heads + TOKENS - 1) / TOKENS);
    int64_t most = 1;
    if (threads > 1 && items < 4 * threads)
        for (int64_t t = 0; t < step.tokens; ++t) most = std::max(most, parts_of(step.last_key[t] - step.first_key));
    return most;
}

// Takes items until there are none left.
inline void attend_all(const Block& b, const Pool& p, const Step& step, const Work& w) {
    const bool wide = p.rope_kind == KIND_F32;
    const auto attend_some = p.latent_kind == KIND_F32    ? (wide ? attend_heads<F32, F32> : attend_heads<F32, BF16>)
                             : p.latent_kind == KIND_BF16 ? (wide ? attend_heads<BF16, F32> : attend_heads<BF16, BF16>)
                                                          : (wide ? attend_heads<FP8, F32> : attend_heads<FP8, BF16>);
    const int64_t head_blocks = (b.heads + TOKENS - 1) / TOKENS, items = w.tokens * head_blocks * w.parts;
    for (int64_t item = w.team.take(ATTENTION); item < items; item = w.team.take(ATTENTION)) {
        const int64_t t = item / w.parts / head_blocks, head = item / w.parts % head_blocks * TOKENS;
        const int64_t all = parts_of(step.last_key[t] - step.first_key), part = item % w.parts;
        if (w.parts == 1) attend_some(b, p, step, w, t, head, 0, all, 0);
        else attend_some(b, p, step, w, t, head, std::min(part, all), std::min(part + 1, all), part);
    }
}

// Puts the parts of one head together and applies W^UV.
inline void head_values(const Block& b, const Pool& p, const Work& w, int64_t head) {
    for (int64_t t = 0; t < w.tokens; t += TOKENS) {
        const int64_t count = std::min<int64_t>(TOKENS, w.tokens - t);
        const float* z[TOKENS];
        float* o[TOKENS];
        for (int64_t s = 0; s < count; ++s) {
            const int64_t first = ((t + s) * b.heads + head) * w.parts;
            float* const laid = w.more_rows.row(s);
            Partial total{w.rows.row(0)};
            std::memset(total.z, 0, padded(b.latent) * sizeof(float));
            for (int64_t i = first; i < first + w.parts; ++i)
                total.add({w.part.row(i), w.part_top[i], w.part_sum[i]}, b.latent);
            unlayout(p.latent_kind, total.z, b.latent, total.sum == 0 ? 0.f : 1.f / total.sum, w.rows.row(1));
            layout(b.kv_b.kind, w.rows.row(1), b.latent, 1, laid);
            z[s] = laid;
            o[s] = w.o.row(t + s) + head * b.value;
        }
        const int64_t row = head * (b.nope + b.value) + b.nope;
        linear(b.kv_b, row, row + b.value, count, z, o);
    }
}

}  // namespace fathom
