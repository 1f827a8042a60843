// The products of FP8 training: sums of 128 E4M3 products, each promoted to an FP32 accumulator with its scales.
//
//   y[i][j] = sum over blocks of 128 k:  (sum over k in order: a(i, k) b(j, k)) * (scale_a * scale_b)
//
// The order of every sum is fixed by kernels/fp8.py, and the natural order of a matrix kernel: lanes are columns j, a sum
// runs over k. a * b of two E4M3 values is exact in FP32, so a fused multiply-add rounds as the definition does.
// Promotion must not be fused: this file is compiled with -ffp-contract=off.
//
// All of b is decoded once per chunk of k into panels (PANEL columns side by side, shared by all threads); each thread
// decodes a block of a's rows and lets panel after panel pass it. Decoding costs 1 / columns of the arithmetic.
//
// Legend: i rows and j columns of the result, k the summed dimension.
#pragma once

#include <omp.h>

#include "fp8_quantise.h"
#include "panel.h"
#include "team.h"

namespace fathom {

// One side of a product. Value (i, k) lies at values[i * step_i + k * step_k], one of the steps is 1; its scale at
// scale[i / per_i * scale_i + k / 128 * scale_k].
struct Side {
    const uint8_t* values;
    int64_t step_i, step_k;
    const float* scale;
    int64_t per_i, scale_i, scale_k;
};

constexpr int64_t CHUNK_K = 512;  // of k per pass: panels and rows of it stay in the second cache
constexpr int64_t ROWS = 96;      // of a per block

// to[k * PANEL + c]: columns first .. first + n of b, k begin .. end; missing columns are zero.
inline void decode_panel(const Side& b, int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    if (n < PANEL) std::memset(to, 0, (end - begin) * PANEL * sizeof(float));
    if (b.step_i == 1) {
        for (int64_t k = begin; k < end; ++k) decode_run(b.values + k * b.step_k + first, n, to + (k - begin) * PANEL);
        return;
    }
    alignas(64) float laid[PANEL][TILE_K];
    if (n < PANEL) std::memset(laid, 0, sizeof laid);
    for (int64_t k0 = begin; k0 < end; k0 += TILE_K) {
        const int64_t count = std::min(TILE_K, end - k0);
        for (int64_t c = 0; c < n; ++c) decode_run(b.values + (first + c) * b.step_i + k0, count, laid[c]);
        float* const out = to + (k0 - begin) * PANEL;
        int64_t k = 0;
        if constexpr (W >= 8)
            for (; k + 8 <= count; k += 8)
                for (int c = 0; c < PANEL; c += 8) turn_8x8(laid[c] + k, TILE_K, out + k * PANEL + c, PANEL);
        for (; k < count; ++k)
            for (int c = 0; c < PANEL; ++c) out[k * PANEL + c] = laid[c][k];
    }
}

// Rows first .. first + n of a: as rows [n][depth] where k is contiguous in memory, else as [depth][ROWS].
inline void decode_rows(const Side& a, int64_t first, int64_t n, int64_t begin, int64_t end, float* to) {
    const int64_t depth = end - begin;
    if (a.step_k == 1)
        for (int64_t i = 0; i < n; ++i) decode_run(a.values + (first + i) * a.step_i + begin, depth, to + i * depth);
    else
        for (int64_t k = begin; k < end; ++k) decode_run(a.values + k * a.step_k + first, n, to + (k - begin) * ROWS);
}

// One tile: S rows, PANEL columns, one block of k. y += part * (scale of row * scales of columns).
template <int S, bool BY_ROW>
INLINE void promote_tile(const float* a, int64_t depth_of_rows, int64_t count, const float* panel, const float* row_scale,
                         const vf* col_scale, float* const* y, bool first) {
    vf sum[S][2] = {};
    for (int64_t k = 0; k < count; ++k) {
        const vf left = load(panel + k * PANEL), right = load(panel + k * PANEL + W);
#pragma GCC unroll 12
        for (int s = 0; s < S; ++s) {
            const vf factor = splat(BY_ROW ? a[s * depth_of_rows + k] : a[k * ROWS + s]);
            sum[s][0] = fma(factor, left, sum[s][0]);
            sum[s][1] = fma(factor, right, sum[s][1]);
        }
    }
#pragma GCC unroll 12
    for (int s = 0; s < S; ++s)
        for (int h = 0; h < 2; ++h) {
            const vf t = sum[s][h] * (splat(row_scale[s]) * col_scale[h]);
            store(y[s] + h * W, (first ? vf{} : load(y[s] + h * W)) + t);
        }
}

template <bool BY_ROW, int S = TILE>
INLINE void promote(int64_t n, const float* a, int64_t depth, int64_t count, const float* panel, const float* rs,
                    const vf* cs, float* const* y, bool first) {
    if constexpr (S > 1)
        if (n < S) return promote<BY_ROW, S - 1>(n, a, depth, count, panel, rs, cs, y, first);
    promote_tile<S, BY_ROW>(a, depth, count, panel, rs, cs, y, first);
}

// Rows first .. first + n (<= ROWS) of the result, k begin .. end, all columns.
inline void rows_times_panels(const Side& a, const Side& b, int64_t first, int64_t n, int64_t columns, int64_t begin,
                              int64_t end, const float* rows, const float* panels, float* y, int64_t stride) {
    const int64_t depth = end - begin;
    const bool by_row = a.step_k == 1;
    for (int64_t j = 0; j < columns; j += PANEL) {
        const float* const panel = panels + j * depth;
        const int64_t width = std::min<int64_t>(PANEL, columns - j);
        each_tile(n, [&](int64_t t, int64_t count) {
            alignas(64) float spare[TILE][PANEL];
            float* to[TILE];
            for (int64_t s = 0; s < count; ++s) {
                float* const own = y + (first + t + s) * stride + j;
                to[s] = width == PANEL ? own : spare[s];
                if (width < PANEL && begin) std::memcpy(spare[s], own, width * sizeof(float));
            }
            for (int64_t k = begin; k < end; k += TILE_K) {
                const int64_t block = k / TILE_K, length = std::min(TILE_K, end - k);
                float row_scale[TILE];
                for (int64_t s = 0; s < count; ++s)
                    row_scale[s] = a.scale[(first + t + s) / a.per_i * a.scale_i + block * a.scale_k];
                vf col_scale[2];
                if (b.per_i > 1) {
                    col_scale[0] = col_scale[1] = splat(b.scale[j / b.per_i * b.scale_i + block * b.scale_k]);
                } else {
                    alignas(64) float s[PANEL] = {};
                    std::memcpy(s, b.scale + j + block * b.scale_k, width * sizeof(float));
                    col_scale[0] = load(s), col_scale[1] = load(s + W);
                }
                const float* const from = rows + (by_row ? t * depth + (k - begin) : (k - begin) * ROWS + t);
                const float* const weights = panel + (k - begin) * PANEL;
                if (by_row) promote<true>(count, from, depth, length, weights, row_scale, col_scale, to, k == 0);
                else promote<false>(count, from, depth, length, weights, row_scale, col_scale, to, k == 0);
            }
            if (width < PANEL)
                for (int64_t s = 0; s < count; ++s)
                    std::memcpy(y + (first + t + s) * stride + j, spare[s], width * sizeof(float));
        });
    }
}

// y [n, columns] with rows `stride` apart. Returns false when memory runs out.
inline bool fp8_product(const Side& a, const Side& b, int64_t n, int64_t columns, int64_t depth, float* y,
                        int64_t stride) {
    static thread_local Memory shared;  // the calling thread's; the others write into it
    const int64_t chunk = std::min(CHUNK_K, depth);
    float* const panels = reinterpret_cast<float*>(shared.at_least(panels_of(columns) * PANEL * chunk * 4));
    if (!panels) return false;
    bool enough = true;
#pragma omp parallel
    {
        static thread_local Memory own;
        float* const rows = reinterpret_cast<float*>(own.at_least(ROWS * CHUNK_K * 4));
        if (!rows)
#pragma omp atomic write
            enough = false;
#pragma omp barrier
        const int64_t threads = omp_get_num_threads();
        int64_t blocks = (n + ROWS - 1) / ROWS;
        blocks = (blocks + threads - 1) / threads * threads;  // as many for each thread
        const int64_t size = ((n + blocks - 1) / blocks + TILE - 1) / TILE * TILE;
        for (int64_t begin = 0; begin < depth && enough; begin += chunk) {
            const int64_t end = std::min(depth, begin + chunk);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < panels_of(columns); ++p)
                decode_panel(b, p * PANEL, std::min<int64_t>(PANEL, columns - p * PANEL), begin, end,
                             panels + p * PANEL * (end - begin));
#pragma omp for schedule(static)
            for (int64_t i = 0; i < blocks; ++i) {
                const int64_t first = i * size, count = std::min(size, n - first);
                if (count <= 0) continue;
                decode_rows(a, first, count, begin, end, rows);
                rows_times_panels(a, b, first, count, columns, begin, end, rows, panels, y, stride);
            }
        }
    }
    return enough;
}

}  // namespace fathom
