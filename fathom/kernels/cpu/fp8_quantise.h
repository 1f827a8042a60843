// Quantisers of FP8 training (report section 3.3.2): tiles 1x128, columns 128x1, blocks 128x128; see kernels/fp8.py.
//
// Where tokens are sorted by expert, column tiles start anew at each expert: `spans` holds the (first token, one past the
// last) of every row of scales.
#pragma once

#include <vector>

#include "fp8_values.h"

namespace fathom {

// x [rows, n] -> q [rows, n], scale [rows, ceil(n / 128)].
inline void quantise_tiles(const float* x, int64_t rows, int64_t n, bool power, uint8_t* q, float* scale) {
    const int64_t tiles = (n + TILE_K - 1) / TILE_K;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t at = t * TILE_K, count = std::min(TILE_K, n - at);
            const float* const from = x + r * n + at;
            const float s = scale_of(largest(from, count), power);
            scale[r * tiles + t] = s;
            encode_run(from, count, s, q + r * n + at);
        }
}

// value(r, c, lanes): `lanes` <= W floats of row r from column c as a vector. Rows low .. high, at most 128, share a scale
// per column.
// A strip of columns at a time, so that whole cache lines are read. The first pass keeps its values side by side: rows
// that are a power of two apart fall on the same few lines of the cache, and a second pass would not find them there.
template <int64_t STRIP, class Source>
INLINE void quantise_span(Source& value, int64_t low, int64_t high, int64_t n, bool power, uint8_t* q, float* scale) {
    constexpr int64_t VECTORS = STRIP / W;
    alignas(64) float kept[TILE_K * STRIP];
    for (int64_t c = 0; c < n; c += STRIP) {
        const int64_t width = std::min(STRIP, n - c), vectors = (width + W - 1) / W;
        vf by[VECTORS] = {};
        for (int64_t r = low; r < high; ++r)
            for (int64_t v = 0; v < vectors; ++v) {
                const vf x = value(r, c + v * W, std::min<int64_t>(W, width - v * W));
                by[v] = larger(by[v], absolute(x));
                store(kept + (r - low) * STRIP + v * W, x);
            }
        for (int64_t v = 0; v < vectors; ++v) {
            for (int i = 0; i < W; ++i) by[v][i] = scale_of(by[v][i], power);
            std::memcpy(scale + c + v * W, &by[v], std::min<int64_t>(W, width - v * W) * sizeof(float));
        }
        for (int64_t r = low; r < high; ++r)
            for (int64_t v = 0; v < vectors; ++v) {
                const int64_t lanes = std::min<int64_t>(W, width - v * W);
                uint8_t *const to = q + r * n + c + v * W, bytes[W];
                encode_fp8(load(kept + (r - low) * STRIP + v * W) / by[v], lanes == W ? to : bytes);
                if (lanes < W) std::memcpy(to, bytes, lanes);
            }
    }
}

INLINE vf load_some(const float* p, int64_t lanes) {
    if (lanes == W) return load(p);
    alignas(64) float some[W] = {};
    std::memcpy(some, p, lanes * sizeof(float));
    return load(some);
}

// x [T, n] -> q [T, n], scale [spans, n].
inline void quantise_columns(const float* x, int64_t n, const int64_t* spans, int64_t count, bool power, uint8_t* q,
                             float* scale) {
    auto value = [&](int64_t r, int64_t c, int64_t lanes) { return load_some(x + r * n + c, lanes); };
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
        quantise_span<128>(value, spans[2 * i], spans[2 * i + 1], n, power, q, scale + i * n);
}

// Tiles [T, n] to columns: dequantised 1x128, quantised again 128x1 (cached activations on their way to wgrad).
inline void retile(const uint8_t* from, const float* from_scale, int64_t n, const int64_t* spans, int64_t count,
                   bool power, uint8_t* q, float* scale) {
    const int64_t tiles = (n + TILE_K - 1) / TILE_K;
    auto value = [&](int64_t r, int64_t c, int64_t lanes) {
        uint8_t some[W] = {};
        const uint8_t* p = from + r * n + c;
        if (lanes < W) std::memcpy(some, p, lanes), p = some;
        return decode_fp8(p) * splat(from_scale[r * tiles + c / TILE_K]);  // W divides 128: the lanes share a tile
    };
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
        quantise_span<32>(value, spans[2 * i], spans[2 * i + 1], n, power, q, scale + i * n);
}

// w [E, rows, n] -> q, scale [E, ceil(rows / 128), ceil(n / 128)].
inline void quantise_blocks(const float* w, int64_t experts, int64_t rows, int64_t n, bool power, uint8_t* q,
                            float* scale) {
    const int64_t down = (rows + TILE_K - 1) / TILE_K, across = (n + TILE_K - 1) / TILE_K;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t e = 0; e < experts; ++e)
        for (int64_t b = 0; b < down * across; ++b) {
            const int64_t r0 = b / across * TILE_K, c0 = b % across * TILE_K;
            const int64_t r1 = std::min(rows, r0 + TILE_K), count = std::min(TILE_K, n - c0);
            float m = 0;
            for (int64_t r = r0; r < r1; ++r) m = std::max(m, largest(w + (e * rows + r) * n + c0, count));
            const float s = scale_of(m, power);
            scale[e * down * across + b] = s;
            for (int64_t r = r0; r < r1; ++r)
                encode_run(w + (e * rows + r) * n + c0, count, s, q + (e * rows + r) * n + c0);
        }
}

}  // namespace fathom
