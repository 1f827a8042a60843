// Two products with a stored matrix, whatever it is stored as; everything else is built from them.
//
//   linear   y[s][row] = row . x[s]           dot products: projections, and attention scores (rows are cached latents)
//   mix      y[s] += sum_row c[s][row] * row  weighted sums of rows: W^UK's absorption, and attention's values
//
// linear holds a tile of rows x tokens in registers: a weight is decoded once for several tokens, an activation loaded
// once for several rows. One token: eight rows at a time, each read from memory once.
//
// FP8 rows carry a scale per segment of columns; a segment's sum is multiplied by it at its end, not weight by weight.
#pragma once

#include <algorithm>

#include "vec.h"

namespace fathom {

// A stored matrix [rows, cols], or a stack of them; mirrored in structs.py.
struct Matrix {
    const void* data;
    const float* scale;  // FP8 only
    int64_t rows, cols;
    int32_t kind;
    int32_t block_rows, block_cols;  // of one scale
    int32_t unused;

    Matrix of_expert(int64_t e) const {
        Matrix m = *this;
        const int64_t bytes = kind == KIND_F32 ? 4 : kind == KIND_BF16 ? 2 : 1;
        m.data = static_cast<const char*>(data) + e * rows * cols * bytes;
        if (scale) m.scale = scale + e * scale_rows() * scale_cols();
        return m;
    }
    int64_t scale_rows() const { return (rows + block_rows - 1) / block_rows; }
    int64_t scale_cols() const { return (cols + block_cols - 1) / block_cols; }
};

template <class K>
struct Rows {
    const typename K::T* data;
    int64_t cols;
    const float* scale;
    int64_t scale_cols;
    uint32_t block_rows;
    int64_t segment;

    explicit Rows(const Matrix& m)
        : data(static_cast<const typename K::T*>(m.data)), cols(m.cols), scale(m.scale), scale_cols(0),
          block_rows(1), segment(m.cols) {
        if (K::scaled) {
            scale_cols = m.scale_cols();
            block_rows = m.block_rows;
            segment = std::min<int64_t>(m.block_cols, m.cols);
        }
    }
    // Scales of rows first .. first + R. One division a tile, not one a row: it takes as long as a dozen decoded vectors.
    template <int R>
    INLINE void scales_of(int64_t first, const float* (&out)[R]) const {
        if (block_rows == 1) {
            for (int r = 0; r < R; ++r) out[r] = scale + (first + r) * scale_cols;
            return;
        }
        uint32_t block = static_cast<uint32_t>(first) / block_rows;
        int64_t next = static_cast<int64_t>(block + 1) * block_rows;
        for (int r = 0; r < R; ++r) {
            if (first + r == next) ++block, next += block_rows;
            out[r] = scale + block * scale_cols;
        }
    }
};

// ---- dot products ---------------------------------------------------------------------------------------------------

template <class K, int R, int S>
INLINE void dot_group(const typename K::T* w, int64_t stride, const float* const* x, int64_t k, vf (&sum)[R][S]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        // More activations than registers can hold: have every row read them from memory again, not spill sums.
        if (K::N == 4 && S > 1) asm volatile("" ::: "memory");
        vf v[K::N];
        K::decode(w + r * stride, v);
#pragma GCC unroll 4
        for (int n = 0; n < K::N; ++n)
#pragma GCC unroll 8
            for (int s = 0; s < S; ++s) sum[r][s] = fma(v[n], load(x[s] + k + n * W), sum[r][s]);
    }
}

// sum[r][s] += columns begin .. end of row (first + r) . x[s], not scaled.
template <class K, int R, int S>
INLINE void dot_columns(const Rows<K>& m, int64_t first, const float* const* x, int64_t begin, int64_t end,
                        vf (&sum)[R][S]) {
    constexpr int G = K::N * W;
    const typename K::T* const w = m.data + first * m.cols;
    int64_t k = begin;
    if constexpr (K::N == 1) {
#pragma GCC unroll 4
        for (; k + G <= end; k += G) dot_group<K, R, S>(w + k, m.cols, x, k, sum);
    } else {
        for (; k + G <= end; k += G) dot_group<K, R, S>(w + k, m.cols, x, k, sum);
    }
    if (k == end) return;
    typename K::T rest[R][G];
    for (int r = 0; r < R; ++r) copy_end<K>(w + r * m.cols + k, end - k, rest[r]);
    dot_group<K, R, S>(rest[0], G, x, k, sum);
}

// total[r][s] += row (first + r) . x[s], lane by lane; x is laid out for K.
template <class K, int R, int S>
INLINE void dot_rows(const Rows<K>& m, int64_t first, const float* const* x, vf (&total)[R][S]) {
    if constexpr (!K::scaled) {
        dot_columns<K, R, S>(m, first, x, 0, m.cols, total);
    } else {
        const float* scales[R];
        m.scales_of(first, scales);
        for (int64_t begin = 0, segment = 0; begin < m.cols; begin += m.segment, ++segment) {
            vf sum[R][S] = {};
            dot_columns<K, R, S>(m, first, x, begin, std::min(begin + m.segment, m.cols), sum);
            for (int r = 0; r < R; ++r) {
                const vf scale = splat(scales[r][segment] * K::after);
                for (int s = 0; s < S; ++s) total[r][s] = fma(sum[r][s], scale, total[r][s]);
            }
        }
    }
}

// Sums over lanes of a tile.
template <int R, int S>
INLINE void sum_tile(const vf (&total)[R][S], float* out) {
    constexpr int count = R * S;
    vf flat[(count + 3) / 4 * 4] = {};
    for (int i = 0; i < count; ++i) flat[i] = total[i / S][i % S];
    for (int i = 0; i < count; i += 4) sum_lanes(flat + i, out + i);
}

template <class K, int R, int S>
INLINE void linear_tile(const Rows<K>& m, int64_t row, int64_t low, const float* const* x, float* const* y,
                        const float* factor) {
    vf total[R][S] = {};
    float out[(R * S + 3) / 4 * 4];
    dot_rows<K, R, S>(m, row, x, total);
    sum_tile<R, S>(total, out);
    for (int s = 0; s < S; ++s) {
        float* const to = y[s] + (row - low);
        for (int r = 0; r < R; ++r) to[r] = factor ? to[r] + factor[s] * out[r * S + s] : out[r * S + s];
    }
}

constexpr int TOKENS = 4;  // of a tile, at most

// Rows of a tile: what the registers hold (16 with AVX2, 32 with AVX-512).
constexpr int tile_rows(int tokens) { return tokens == 1 ? 8 : W == 16 || tokens == 2 ? 4 : tokens == 3 ? 3 : 2; }

template <class K, int S>
void linear_tokens(const Rows<K>& m, int64_t low, int64_t high, const float* const* x, float* const* y,
                   const float* factor) {
    constexpr int R = tile_rows(S);
    int64_t row = low;
    for (; row + R <= high; row += R) linear_tile<K, R, S>(m, row, low, x, y, factor);
    for (; row < high; ++row) linear_tile<K, 1, S>(m, row, low, x, y, factor);
}

template <class K>
void linear_as(const Matrix& matrix, int64_t low, int64_t high, int64_t tokens, const float* const* x, float* const* y,
               const float* factor) {
    const Rows<K> m(matrix);
    const int64_t step = tokens > TOKENS ? 24 : high - low;  // rows that stay in the first cache over all tokens
    for (int64_t begin = low; begin < high; begin += step) {
        const int64_t end = std::min(begin + step, high);
        for (int64_t t = 0; t < tokens; t += TOKENS) {
            float* to[TOKENS];
            const int64_t n = std::min<int64_t>(TOKENS, tokens - t);
            for (int64_t s = 0; s < n; ++s) to[s] = y[t + s] + (begin - low);
            const float* f = factor ? factor + t : nullptr;
            if (n == 4) linear_tokens<K, 4>(m, begin, end, x + t, to, f);
            else if (n == 3) linear_tokens<K, 3>(m, begin, end, x + t, to, f);
            else if (n == 2) linear_tokens<K, 2>(m, begin, end, x + t, to, f);
            else linear_tokens<K, 1>(m, begin, end, x + t, to, f);
        }
    }
}

// y[s][row - low] = row . x[s] for rows low .. high; with factors: y[s][row - low] += factor[s] * (row . x[s]).
// x[s] is laid out for the matrix.
inline void linear(const Matrix& m, int64_t low, int64_t high, int64_t tokens, const float* const* x, float* const* y,
                   const float* factor = nullptr) {
    if (high <= low || !tokens) return;
    if (m.kind == KIND_F32) linear_as<F32>(m, low, high, tokens, x, y, factor);
    else if (m.kind == KIND_BF16) linear_as<BF16>(m, low, high, tokens, x, y, factor);
    else linear_as<FP8>(m, low, high, tokens, x, y, factor);
}

// ---- weighted sums of rows ------------------------------------------------------------------------------------------

// Columns k .. k + U groups; END: only n of them, less than a group.
template <class K, int S, int U, bool END>
INLINE void mix_columns(const Rows<K>& m, int64_t first, int64_t count, const float* const* c, int64_t k, int64_t n,
                        float* const* y) {
    constexpr int G = K::N * W, V = U * K::N;
    const int64_t segment = K::scaled ? k / m.segment : 0;
    vf sum[S][V];
    for (int s = 0; s < S; ++s)
        for (int j = 0; j < V; ++j) sum[s][j] = load(y[s] + k + j * W);
    const typename K::T* w = m.data + first * m.cols + k;
    for (int64_t i = 0; i < count; ++i, w += m.cols) {
        vf v[V];
        if constexpr (END) {
            typename K::T rest[G];
            copy_end<K>(w, n, rest);
            K::decode(rest, v);
        } else {
            for (int u = 0; u < U; ++u) K::decode(w + u * G, v + u * K::N);
        }
        float scale = 1;
        if constexpr (K::scaled) {
            const float* scales[1];
            m.scales_of(first + i, scales);
            scale = scales[0][segment] * K::before;
        }
        for (int s = 0; s < S; ++s) {
            const vf coefficient = splat(K::scaled ? c[s][i] * scale : c[s][i]);
            for (int j = 0; j < V; ++j) sum[s][j] = fma(v[j], coefficient, sum[s][j]);
        }
    }
    for (int s = 0; s < S; ++s)
        for (int j = 0; j < V; ++j) store(y[s] + k + j * W, sum[s][j]);
}

// y[s] += sum over i < count of c[s][i] * row (first + i). y stays in K's layout: `unlayout` brings it back.
template <class K, int S>
INLINE void mix(const Rows<K>& m, int64_t first, int64_t count, const float* const* c, float* const* y) {
    constexpr int G = K::N * W, U = K::N == 1 ? 2 : 1;
    constexpr int some = K::N == 4 && W != 16 && S > 2 ? 2 : S;  // what 16 registers hold
    for (int s = 0; s < S; s += some) {
        int64_t k = 0;
        for (; k + U * G <= m.cols; k += U * G)
            mix_columns<K, some, U, false>(m, first, count, c + s, k, U * G, y + s);
        for (; U > 1 && k + G <= m.cols; k += G) mix_columns<K, some, 1, false>(m, first, count, c + s, k, G, y + s);
        if (k < m.cols) mix_columns<K, some, 1, true>(m, first, count, c + s, k, m.cols - k, y + s);
    }
}

}  // namespace fathom
