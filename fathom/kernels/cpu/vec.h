// Vectors, and the three ways a weight is stored.
//
// GCC vector extensions, as wide as the machine. Sums are written with `fma`, never as `a * b + c`, which compilers fuse
// in one loop and not in the next: a token's result must not depend on how many others share its step.
//
// A weight is FP32, BF16 or FP8 E4M3, and one 4-byte lane holds 1, 2 or 4 of them. Taking lanes apart by masks and
// shifts is cheaper than widening in order, but yields the columns in another order: first every lane's weight 0, then
// every lane's weight 1, and so on. So activations are put into that order once ("laid out"), after which every row
// streams through whole registers. A group is the N * W columns of one register.
//
// FP8: the byte's sign to bit 31 and its other 7 bits to 26..20 make a float that is 2^-120 times the value, subnormals
// included. Products must not fall below FP32's range, so laid-out activations carry 2^96 and results are multiplied by
// 2^24. The two NaN codes are not treated: they read as 480, no checkpoint holds them.
//
// Legend: W lanes of a vector, N weights per lane, group N * W columns.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fathom {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int64_t PAD = 64;  // floats: no group is longer; rows of work buffers are padded to this

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef int16_t vs __attribute__((vector_size(W * 4)));

#define INLINE inline __attribute__((always_inline))

INLINE int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }
INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
INLINE vf splat(float x) { return x - vf{}; }  // x - 0 costs nothing; 0 + x is an addition, for the sake of -0

// a * b + c
INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// ---- how weights are stored -----------------------------------------------------------------------------------------

enum Kind : int32_t { KIND_F32 = 0, KIND_BF16 = 1, KIND_FP8 = 2 };

struct F32 {
    using T = float;
    static constexpr int N = 1;
    static constexpr bool scaled = false;
    static constexpr float before = 1, after = 1;
    static INLINE void decode(const T* p, vf* v) { v[0] = load(p); }
};

struct BF16 {
    using T = uint16_t;
    static constexpr int N = 2;
    static constexpr bool scaled = false;
    static constexpr float before = 1, after = 1;
    static INLINE void decode(const T* p, vf* v) {
        vu lanes;
        std::memcpy(&lanes, p, sizeof lanes);
        v[0] = (vf)(lanes << 16);
        v[1] = (vf)(lanes & 0xffff0000u);
    }
};

struct FP8 {
    using T = uint8_t;
    static constexpr int N = 4;
    static constexpr bool scaled = true;
    static constexpr float before = 0x1p96f, after = 0x1p24f;
    static INLINE void decode(const T* p, vf* v) {
        vs pairs;
        std::memcpy(&pairs, p, sizeof pairs);
        const vu high = (vu)(pairs >> 4), low = (vu)((vs)(pairs << 8) >> 4);  // bytes 1, 3 and 0, 2; signs spread
        v[0] = (vf)((low << 16) & 0x87f00000u);
        v[1] = (vf)((high << 16) & 0x87f00000u);
        v[2] = (vf)(low & 0x87f00000u);
        v[3] = (vf)(high & 0x87f00000u);
    }
};

// The end of a row, n < N * W columns: the rest of the group reads as zero.
template <class K>
INLINE void copy_end(const typename K::T* p, int64_t n, typename K::T* group) {
    std::memset(group, 0, sizeof(typename K::T) * K::N * W);
    std::memcpy(group, p, sizeof(typename K::T) * n);
}

// ---- layouts --------------------------------------------------------------------------------------------------------

template <class K>
INLINE void layout_as(const float* x, int64_t n, float factor, float* y) {
    constexpr int G = K::N * W;
    factor *= K::before;
    int64_t k = 0;
    for (; k + G <= n; k += G)
        for (int j = 0; j < K::N; ++j)
            for (int i = 0; i < W; ++i) y[k + j * W + i] = x[k + i * K::N + j] * factor;
    if (k == n) return;
    for (int64_t c = k; c < k + G; ++c) {
        const int64_t j = (c - k) % K::N, i = (c - k) / K::N;
        y[k + j * W + i] = c < n ? x[c] * factor : 0.f;
    }
}

// x [n] times factor, in the order rows of `kind` decode to; y is zero from n to the end of the group. Not in place.
inline void layout(int32_t kind, const float* x, int64_t n, float factor, float* y) {
    if (kind == KIND_F32) layout_as<F32>(x, n, factor, y);
    else if (kind == KIND_BF16) layout_as<BF16>(x, n, factor, y);
    else layout_as<FP8>(x, n, factor, y);
}

template <class K>
INLINE void unlayout_as(const float* y, int64_t n, float factor, float* x) {
    constexpr int G = K::N * W;
    factor *= K::after;
    for (int64_t k = 0; k < n; k += G)
        for (int j = 0; j < K::N; ++j)
            for (int i = 0; i < W; ++i)
                if (k + G <= n || k + i * K::N + j < n) x[k + i * K::N + j] = y[k + j * W + i] * factor;
}

// Back to column order, for a weighted sum of rows (see `mix`).
inline void unlayout(int32_t kind, const float* y, int64_t n, float factor, float* x) {
    if (kind == KIND_F32) unlayout_as<F32>(y, n, factor, x);
    else if (kind == KIND_BF16) unlayout_as<BF16>(y, n, factor, x);
    else unlayout_as<FP8>(y, n, factor, x);
}

// ---- functions of a vector ------------------------------------------------------------------------------------------

// Sums of the lanes of 4 vectors.
INLINE void sum_lanes(const vf* v, float* out) {
#if defined(__AVX2__)
    __m256 part[4];
    for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
        part[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v[i]), 1)));
#else
        part[i] = (__m256)v[i];
#endif
    }
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(part[0], part[1]), _mm256_hadd_ps(part[2], part[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    for (int i = 0; i < 4; ++i) {
        out[i] = 0;
        for (int lane = 0; lane < W; ++lane) out[i] += v[i][lane];
    }
#endif
}

// a > b ? a : b and a < b ? a : b, lane by lane: b where a or b is NaN. Compilers do not find the instruction.
INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// e^x to about 1e-7: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, n added to the exponent.
INLINE vf exp(vf x) {
    x = smaller(splat(88.f), larger(splat(-87.f), x));
    const vf round = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
    const vf shifted = x * 1.44269504f + round;
    const vf n = shifted - round;
    const vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

INLINE vf sigmoid(vf x) { return 1.f / (1.f + exp(-x)); }

}  // namespace fathom
