// Causal attention with its backward pass, in FP32, for training: one (sequence, head) per task.
//
//   forward    S = q k^T scale    P = exp(S - max) / sum    o = P v          kept: o and lse = max + log(sum)
//   backward   P again from lse   dV += P^T do   dP = do v^T   dS = P (dP - rowsum(do o)) scale
//              dq = dS k          dK += dS^T q
//
// In forward a block of queries sees its whole row of scores, so there is no running maximum: rows of a few thousand keys
// fit the cache that a CPU has. Keys and values are turned into panels once per head; every product is a tile of panel.h.
//
// Legend: b sequence, h head, t tokens, d query and key width, e value width; d and e are multiples of PANEL.
#pragma once

#include <omp.h>

#include "fp8_values.h"
#include "panel.h"
#include "team.h"

namespace fathom {

// A [B, H, T, width] tensor whose last axis is contiguous. Strides in floats.
struct Heads {
    float* data;
    int64_t b, h, t;
    float* at(int64_t i, int64_t heads) const { return data + i / heads * b + i % heads * h; }
};

struct Attention {
    Heads q, k, v, o, d_o, d_q, d_k, d_v;
    float* lse;  // [B, H, T]
    float* top;  // [B, H]: forward's largest score, times scale
    int64_t sequences, heads, tokens, width, value_width;
    float scale;
};

constexpr int64_t QUERIES = 48;  // of a block: whole tiles of 6 and of 12
constexpr int64_t KEYS = 512;    // that a block of queries meets at a time in backward
constexpr int64_t FORWARD_SPACE = 1 << 16;  // floats of scores in forward, where a query sees all its keys at once

// y[s][at ..] (+)= sum over k of a[k * step + s] * panel[k]: rows of the result are columns of a.
template <int S>
void multiply_turned(const float* a, int64_t step, int64_t depth, const float* panel, float* const* y, int64_t at) {
    vf sum[S][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
        const vf left = load(panel + k * PANEL), right = load(panel + k * PANEL + W);
#pragma GCC unroll 12
        for (int s = 0; s < S; ++s) {
            const vf factor = splat(a[k * step + s]);
            sum[s][0] = fma(factor, left, sum[s][0]);
            sum[s][1] = fma(factor, right, sum[s][1]);
        }
    }
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
        store(y[s] + at, load(y[s] + at) + sum[s][0]);
        store(y[s] + at + W, load(y[s] + at + W) + sum[s][1]);
    }
}

using MultiplyTurned = void (*)(const float*, int64_t, int64_t, const float*, float* const*, int64_t);

inline MultiplyTurned turned_of(int64_t rows) {
    static constexpr MultiplyTurned sizes[] = {
        multiply_turned<1>, multiply_turned<2>, multiply_turned<3>,
        multiply_turned<4>, multiply_turned<5>, multiply_turned<6>,
#if defined(__AVX512F__) && defined(__AVX512BW__)
        multiply_turned<7>, multiply_turned<8>, multiply_turned<9>, multiply_turned<10>, multiply_turned<11>,
        multiply_turned<12>,
#endif
    };
    return sizes[rows - 1];
}

// Rows [t][width] as panels of PANEL columns: to[column / PANEL][t][PANEL].
inline void panels_of_columns(const float* x, int64_t stride, int64_t tokens, int64_t width, float* to) {
    for (int64_t c = 0; c < width; c += PANEL)
        for (int64_t t = 0; t < tokens; ++t) {
            float* const row = to + c * tokens + t * PANEL;
            store(row, load(x + t * stride + c));
            store(row + W, load(x + t * stride + c + W));
        }
}

// Rows [t][width] as panels of PANEL rows, turned: to[t / PANEL][width][PANEL]; missing rows are zero.
inline void panels_of_rows(const float* x, int64_t stride, int64_t tokens, int64_t width, float* to) {
    for (int64_t t = 0; t < tokens; t += PANEL) {
        float* const panel = to + t * width;
        const int64_t rows = std::min<int64_t>(PANEL, tokens - t);
        if (W >= 8 && rows == PANEL && width % 8 == 0) {
            for (int64_t c = 0; c < width; c += 8)
                for (int r = 0; r < PANEL; r += 8) turn_8x8(x + (t + r) * stride + c, stride, panel + c * PANEL + r, PANEL);
            continue;
        }
        for (int64_t c = 0; c < width; ++c)
            for (int r = 0; r < PANEL; ++r) panel[c * PANEL + r] = r < rows ? x[(t + r) * stride + c] : 0.f;
    }
}

// Rows `first .. first + n` of x times panels: y[i][at + p * PANEL ..] for `count` panels of `depth`.
inline void rows_by_panels(const float* const* x, int64_t n, int64_t depth, const float* panels, int64_t count,
                           int64_t panel_step, float* const* y, bool add) {
    for (int64_t p = 0; p < count; ++p)
        each_tile(n, [&](int64_t i, int64_t rows) {
            tile_of(rows)(x + i, 0, depth, panels + p * panel_step, y + i, p * PANEL, add);
        });
}

struct AttentionSpace {
    float *turned_k, *k, *turned_v, *v, *scores, *other, *block;
    int64_t row;  // floats of a row of scores

    AttentionSpace(Arena& arena, const Attention& a) {
        row = (a.tokens + PANEL - 1) / PANEL * PANEL;
        turned_k = arena.take<float>(row * a.width);
        k = arena.take<float>(row * a.width);
        turned_v = arena.take<float>(row * a.value_width);
        v = arena.take<float>(row * a.value_width);
        scores = arena.take<float>(QUERIES * row);
        other = arena.take<float>(QUERIES * row);
        block = arena.take<float>(QUERIES * (a.width + a.value_width));
    }
};

// scores of n queries with keys begin .. end, begin a multiple of PANEL; rows start at `begin`.
inline void scores_of(const Attention& a, const AttentionSpace& s, const float* const* q, int64_t n, int64_t begin,
                      int64_t end, float* const* rows) {
    const int64_t panels = (end - begin + PANEL - 1) / PANEL;
    rows_by_panels(q, n, a.width, s.turned_k + begin * a.width, panels, PANEL * a.width, rows, false);
}

inline void attention_forward_head(const Attention& a, const AttentionSpace& s, int64_t i) {
    const float *const q = a.q.at(i, a.heads), *const k = a.k.at(i, a.heads), *const v = a.v.at(i, a.heads);
    float* const o = a.o.at(i, a.heads);
    panels_of_rows(k, a.k.t, a.tokens, a.width, s.turned_k);
    panels_of_columns(v, a.v.t, a.tokens, a.value_width, s.v);
    const int64_t block = std::max<int64_t>(TILE, std::min(QUERIES, FORWARD_SPACE / s.row / TILE * TILE));
    float top = -3.0e38f;
    for (int64_t first = 0; first < a.tokens; first += block) {
        const int64_t n = std::min(block, a.tokens - first), keys = first + n;
        const float* queries[QUERIES];
        float *rows[QUERIES], *out[QUERIES];
        for (int64_t r = 0; r < n; ++r)
            queries[r] = q + (first + r) * a.q.t, rows[r] = s.scores + r * s.row, out[r] = o + (first + r) * a.o.t;
        scores_of(a, s, queries, n, 0, keys, rows);
        float inverse[QUERIES];
        for (int64_t r = 0; r < n; ++r) {
            float* const row = rows[r];
            const int64_t own = first + r + 1, whole = own / W * W;
            vf m = splat(-3.0e38f), total = {};
            for (int64_t c = 0; c < whole; c += W) m = larger(m, load(row + c));
            float most = largest_lane(m);
            for (int64_t c = whole; c < own; ++c) most = std::max(most, row[c]);
            top = std::max(top, most);
            for (int64_t c = 0; c < (keys + W - 1) / W * W; c += W) {
                vf e = exp((load(row + c) - splat(most)) * a.scale);
                if (c + W > own)
                    for (int l = 0; l < W; ++l)
                        if (c + l >= own) e[l] = 0;
                total = total + e;
                store(row + c, e);
            }
            float sum = 0;
            for (int l = 0; l < W; ++l) sum += total[l];
            inverse[r] = 1.f / sum;
            a.lse[i * a.tokens + first + r] = most * a.scale + std::log(sum);
        }
        rows_by_panels(rows, n, keys, s.v, a.value_width / PANEL, PANEL * a.tokens, out, false);
        for (int64_t r = 0; r < n; ++r)
            for (int64_t c = 0; c < a.value_width; c += W) store(out[r] + c, load(out[r] + c) * inverse[r]);
    }
    a.top[i] = top * a.scale;
}

inline void attention_backward_head(const Attention& a, const AttentionSpace& s, int64_t i) {
    const float *const q = a.q.at(i, a.heads), *const k = a.k.at(i, a.heads), *const v = a.v.at(i, a.heads);
    const float *const o = a.o.at(i, a.heads), *const d_o = a.d_o.at(i, a.heads);
    float *const d_q = a.d_q.at(i, a.heads), *const d_k = a.d_k.at(i, a.heads), *const d_v = a.d_v.at(i, a.heads);
    panels_of_rows(k, a.k.t, a.tokens, a.width, s.turned_k);
    panels_of_columns(k, a.k.t, a.tokens, a.width, s.k);
    panels_of_rows(v, a.v.t, a.tokens, a.value_width, s.turned_v);
    for (int64_t t = 0; t < a.tokens; ++t) {
        std::memset(d_k + t * a.d_k.t, 0, a.width * sizeof(float));
        std::memset(d_v + t * a.d_v.t, 0, a.value_width * sizeof(float));
    }
    for (int64_t first = 0; first < a.tokens; first += QUERIES) {
        const int64_t n = std::min(QUERIES, a.tokens - first), keys = first + n;
        const float *queries[QUERIES], *grads[QUERIES];
        float *rows[QUERIES], *others[QUERIES], *out[QUERIES];
        for (int64_t r = 0; r < n; ++r) {
            queries[r] = q + (first + r) * a.q.t, grads[r] = d_o + (first + r) * a.d_o.t;
            rows[r] = s.scores + r * s.row, others[r] = s.other + r * s.row, out[r] = d_q + (first + r) * a.d_q.t;
        }
        panels_of_columns(q + first * a.q.t, a.q.t, n, a.width, s.block);
        float* const gradients = s.block + QUERIES * a.width;
        panels_of_columns(d_o + first * a.d_o.t, a.d_o.t, n, a.value_width, gradients);
        float dots[QUERIES];
        for (int64_t r = 0; r < n; ++r) {
            vf both = {};
            for (int64_t c = 0; c < a.value_width; c += W)
                both = both + load(grads[r] + c) * load(o + (first + r) * a.o.t + c);
            dots[r] = 0;
            for (int l = 0; l < W; ++l) dots[r] += both[l];
        }
        for (int64_t begin = 0; begin < keys; begin += KEYS) {
            const int64_t end = std::min(keys, begin + KEYS), count = end - begin;
            scores_of(a, s, queries, n, begin, end, rows);
            rows_by_panels(grads, n, a.value_width, s.turned_v + begin * a.value_width, (count + PANEL - 1) / PANEL,
                           PANEL * a.value_width, others, false);
            for (int64_t r = 0; r < n; ++r) {
                const int64_t own = first + r + 1 - begin;  // keys of this block that the query sees
                const float lse = a.lse[i * a.tokens + first + r];
                for (int64_t c = 0; c < (count + W - 1) / W * W; c += W) {
                    vf p = exp(load(rows[r] + c) * a.scale - splat(lse));
                    if (c + W > own)
                        for (int l = 0; l < W; ++l)
                            if (c + l >= own) p[l] = 0;
                    store(rows[r] + c, p);
                    store(others[r] + c, p * (load(others[r] + c) - splat(dots[r])) * a.scale);
                }
            }
            rows_by_panels(others, n, count, s.k + begin * PANEL, a.width / PANEL, PANEL * a.tokens, out, begin > 0);
            each_tile(count, [&](int64_t key, int64_t some) {
                float *to_k[TILE], *to_v[TILE];
                for (int64_t c = 0; c < some; ++c) {
                    to_k[c] = d_k + (begin + key + c) * a.d_k.t;
                    to_v[c] = d_v + (begin + key + c) * a.d_v.t;
                }
                for (int64_t c = 0; c < a.width; c += PANEL)
                    turned_of(some)(s.other + key, s.row, n, s.block + c * n, to_k, c);
                for (int64_t c = 0; c < a.value_width; c += PANEL)
                    turned_of(some)(s.scores + key, s.row, n, gradients + c * n, to_v, c);
            });
        }
    }
}

template <class Head>
bool attention_heads(const Attention& a, Head head) {
    Arena size;
    AttentionSpace measured(size, a);
    bool enough = true;
#pragma omp parallel
    {
        static thread_local Memory memory;
        char* const base = memory.at_least(size.used);
        if (base == nullptr) {
#pragma omp atomic write
            enough = false;
        }
#pragma omp barrier
        if (enough) {
            Arena arena{base};
            const AttentionSpace space(arena, a);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < a.sequences * a.heads; ++i) head(a, space, i);
        }
    }
    return enough;
}

}  // namespace fathom
