// Products for many tokens: panels of weights, tiles of tokens.
//
// linear.h reads a weight row from memory for every few tokens and sums lanes at the end of each dot product. With a
// hundred tokens it pays to prepare the weights first: a panel, PANEL rows over DEPTH columns, is decoded and turned
// once, so that the PANEL weights of a column lie side by side. A tile of TILE tokens then takes two loads per column
// and multiplies them by one activation per token; all of its sums stay in registers and no lanes are left to add.
// A panel stays in the first cache while all tokens pass it.
//
//   panel[k][r] = W[first + r][k]        y[t][r] = sum_k x[t][k] panel[k][r]
//
// A sum runs over k in order, DEPTH columns at a time: it does not depend on the other tokens, but it is not the order
// of linear.h, so the two differ in FP32's last bits.
//
// Legend: k columns, r rows of the panel, t tokens.
#pragma once

#include "linear.h"

namespace fathom {

constexpr int PANEL = 2 * W;               // rows: two vectors
constexpr int TILE = W == 16 ? 12 : 6;     // tokens: 2 * TILE sums fill the registers (32 with AVX-512, else 16)
constexpr int64_t DEPTH = 256;             // columns: a panel takes 16 or 32 KB
constexpr int64_t PANEL_SPACE = PANEL * (DEPTH + PAD);  // floats; packing fills whole groups

inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

// ---- packing --------------------------------------------------------------------------------------------------------

// to[c * step + r] = from[r * stride + c] for 8 rows and 8 columns.
INLINE void turn_8x8(const float* from, int64_t stride, float* to, int64_t step) {
#if defined(__AVX2__)
    __m256 a[8], b[8];
    for (int r = 0; r < 8; ++r) a[r] = _mm256_loadu_ps(from + r * stride);
    for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int i = 0; i < 2; ++i) {
            a[r + 2 * i] = _mm256_shuffle_ps(b[r + i], b[r + 2 + i], 0x44);
            a[r + 2 * i + 1] = _mm256_shuffle_ps(b[r + i], b[r + 2 + i], 0xee);
        }
    for (int c = 0; c < 4; ++c) {
        _mm256_storeu_ps(to + c * step, _mm256_permute2f128_ps(a[c], a[c + 4], 0x20));
        _mm256_storeu_ps(to + (c + 4) * step, _mm256_permute2f128_ps(a[c], a[c + 4], 0x31));
    }
#else
    for (int c = 0; c < 8; ++c)
        for (int r = 0; r < 8; ++r) to[c * step + r] = from[r * stride + c];
#endif
}

// The n * W columns of a group, in the order they are decoded in, times their scale.
template <class K>
INLINE void decode_scaled(const typename K::T* p, int64_t count, float scale, float* laid) {
    vf v[K::N];
    if (count >= K::N * W) {
        K::decode(p, v);
    } else {
        typename K::T rest[K::N * W];
        copy_end<K>(p, count, rest);
        K::decode(rest, v);
    }
    for (int j = 0; j < K::N; ++j) store(laid + j * W, K::scaled ? v[j] * K::before * (scale * K::after) : v[j]);
}

// Columns begin .. end of rows first .. first + n, n <= PANEL; further rows, and columns up to a whole group, are zero.
template <class K>
void pack_as(const Matrix& matrix, int64_t first, int64_t n, int64_t begin, int64_t end, float* panel) {
    constexpr int G = K::N * W, TURN = W < 8 ? 1 : 8;
    const Rows<K> m(matrix);
    const float* scales[PANEL];
    if constexpr (K::scaled) m.scales_of(first, scales);
    alignas(64) float laid[PANEL * G];
    std::memset(laid + n * G, 0, (PANEL - n) * G * sizeof(float));
    for (int64_t k = begin; k < end; k += G) {
        const int64_t segment = K::scaled ? k / m.segment : 0;
        for (int64_t r = 0; r < n; ++r)
            decode_scaled<K>(m.data + (first + r) * m.cols + k, end - k, K::scaled ? scales[r][segment] : 1.f,
                             laid + r * G);
        float* const to = panel + (k - begin) * PANEL;
        for (int j = 0; j < K::N; ++j)
            for (int i = 0; i < W; i += TURN)
                for (int r = 0; r < PANEL; r += TURN) {
                    const float* const from = laid + r * G + j * W + i;
                    if constexpr (TURN == 8) turn_8x8(from, G, to + (i * K::N + j) * PANEL + r, K::N * PANEL);
                    else to[(i * K::N + j) * PANEL + r] = *from;
                }
    }
}

inline void pack(const Matrix& m, int64_t first, int64_t n, int64_t begin, int64_t end, float* panel) {
    if (m.kind == KIND_F32) pack_as<F32>(m, first, n, begin, end, panel);
    else if (m.kind == KIND_BF16) pack_as<BF16>(m, first, n, begin, end, panel);
    else pack_as<FP8>(m, first, n, begin, end, panel);
}

template <class K>
void decode_row_as(const Matrix& matrix, int64_t row, float* y) {
    constexpr int G = K::N * W;
    const Rows<K> m(matrix);
    const float* scales[1] = {};
    if constexpr (K::scaled) m.scales_of(row, scales);
    alignas(64) float laid[G];
    for (int64_t k = 0; k < m.cols; k += G) {
        const float scale = K::scaled ? scales[0][k / m.segment] : 1.f;
        decode_scaled<K>(m.data + row * m.cols + k, m.cols - k, scale, laid);
        unlayout_as<K>(laid, std::min<int64_t>(G, m.cols - k), 1 / K::after, y + k);
    }
}

// A row as FP32, columns in order.
inline void decode_row(const Matrix& m, int64_t row, float* y) {
    if (m.kind == KIND_F32) std::memcpy(y, static_cast<const float*>(m.data) + row * m.cols, m.cols * sizeof(float));
    else if (m.kind == KIND_BF16) decode_row_as<BF16>(m, row, y);
    else decode_row_as<FP8>(m, row, y);
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// y[s][at ..] = sum over k < depth of x[s][begin + k] * panel[k]; add: += that.
template <int S>
void multiply_tile(const float* const* x, int64_t begin, int64_t depth, const float* panel, float* const* y,
                   int64_t at, bool add) {
    vf sum[S][2] = {};
    const float* from[S];
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) from[s] = x[s] + begin;
    for (int64_t k = 0; k < depth; ++k) {
        const vf left = load(panel + k * PANEL), right = load(panel + k * PANEL + W);
#pragma GCC unroll 12
        for (int s = 0; s < S; ++s) {
            const vf factor = splat(from[s][k]);
            sum[s][0] = fma(factor, left, sum[s][0]);
            sum[s][1] = fma(factor, right, sum[s][1]);
        }
    }
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s) {
        float* const to = y[s] + at;
        store(to, add ? load(to) + sum[s][0] : sum[s][0]);
        store(to + W, add ? load(to + W) + sum[s][1] : sum[s][1]);
    }
}

using MultiplyTile = void (*)(const float* const*, int64_t, int64_t, const float*, float* const*, int64_t, bool);

inline MultiplyTile tile_of(int64_t tokens) {
    static constexpr MultiplyTile sizes[] = {
        multiply_tile<1>, multiply_tile<2>, multiply_tile<3>, multiply_tile<4>, multiply_tile<5>, multiply_tile<6>,
#if defined(__AVX512F__) && defined(__AVX512BW__)
        multiply_tile<7>, multiply_tile<8>, multiply_tile<9>, multiply_tile<10>, multiply_tile<11>, multiply_tile<12>,
#endif
    };
    return sizes[tokens - 1];
}

// f(first, count) for tiles that cover `tokens`: full ones, and no very small one at the end if that can be helped.
template <class F>
INLINE void each_tile(int64_t tokens, F f) {
    for (int64_t t = 0, count; t < tokens; t += count) {
        const int64_t left = tokens - t;
        count = left <= TILE ? left : left < 2 * TILE ? (left + 1) / 2 : TILE;
        f(t, count);
    }
}

// y[t][at ..] = panel . x[t], of columns begin .. begin + depth of x. Writes whole panels: y needs the room.
inline void multiply_panel(const float* panel, int64_t begin, int64_t depth, int64_t tokens, const float* const* x,
                           float* const* y, int64_t at, bool add) {
    each_tile(tokens, [&](int64_t t, int64_t count) {
        tile_of(count)(x + t, begin, depth, panel, y + t, at, add);
    });
}

// Fetches the weights of the panel to come, a few lines with every tile: the sums leave the memory idle.
struct Ahead {
    const char* row;
    int64_t stride, lines, rows;  // bytes; cache lines of a row; rows to come
    int64_t line = 0;

    Ahead(const Matrix& m, int64_t first, int64_t begin) {
        const int64_t size = m.kind == KIND_F32 ? 4 : m.kind == KIND_BF16 ? 2 : 1;
        row = static_cast<const char*>(m.data) + (first * m.cols + begin) * size;
        stride = m.cols * size;
        lines = (std::min(DEPTH, m.cols - begin) * size + 63) / 64;
        rows = PANEL;
    }
    INLINE void fetch(int64_t count) {
        for (; count && rows; --count) {
            __builtin_prefetch(row + line * 64, 0, 2);
            if (++line == lines) line = 0, row += stride, --rows;
        }
    }
};

// y[t][at + r] = row (first + r) of m . x[t] for r < n <= PANEL; add: += that. With `room` a whole panel of y may be
// written, else exactly n values. `following`: row at which the caller goes on, for `Ahead`.
inline void multiply(const Matrix& m, int64_t first, int64_t n, int64_t tokens, const float* const* x,
                     float* const* y, int64_t at, bool add, bool room, float* panel, int64_t following) {
    for (int64_t begin = 0; begin < m.cols; begin += DEPTH, add = true) {
        const int64_t depth = std::min(DEPTH, m.cols - begin);
        const bool more = begin + DEPTH < m.cols;
        Ahead ahead(m, more ? first : following, more ? begin + DEPTH : 0);
        const int64_t lines = ahead.lines * ahead.rows * TILE / tokens + 1;
        pack(m, first, n, begin, begin + depth, panel);
        each_tile(tokens, [&](int64_t t, int64_t count) {
            ahead.fetch(lines);
            if (room || n == PANEL) {
                tile_of(count)(x + t, begin, depth, panel, y + t, at, add);
                return;
            }
            alignas(64) float out[TILE][PANEL];
            float* to[TILE];
            for (int64_t s = 0; s < count; ++s) to[s] = out[s];
            tile_of(count)(x + t, begin, depth, panel, to, 0, false);
            for (int64_t s = 0; s < count; ++s)
                for (int64_t r = 0; r < n; ++r) y[t + s][at + r] = out[s][r] + (add ? y[t + s][at + r] : 0.f);
        });
    }
}

}  // namespace fathom
