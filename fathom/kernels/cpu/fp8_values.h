// E4M3 values: FP32 to bytes and back, scales. The definition is kernels/fp8.py; every bit here is the same.
//
// A trainer flushes denormals (MXCSR), and E4M3's own subnormals must survive that: they are converted as integers and
// never pass through a denormal FP32.
#pragma once

#include <algorithm>
#include <cmath>

#include "vec.h"

namespace fathom {

constexpr int64_t TILE_K = 128;    // values that share a scale
constexpr float FP8_MAX = 448.f, AMAX_FLOOR = 1e-4f;

typedef uint8_t vb __attribute__((vector_size(W)));

INLINE vf absolute(vf x) { return (vf)((vu)x & 0x7fffffffu); }

INLINE float largest_lane(vf x) {
    float m = x[0];
    for (int i = 1; i < W; ++i) m = std::max(m, x[i]);
    return m;
}

INLINE float sum_of(vf v) {
    float sum = 0;
    for (int l = 0; l < W; ++l) sum += v[l];
    return sum;
}

// Scale of a tile or block from its largest magnitude; `power`: rounded up to a power of two.
INLINE float scale_of(float amax, bool power) {
    const float scale = std::max(amax, AMAX_FLOOR) / FP8_MAX;
    if (!power) return scale;
    uint32_t bits;
    std::memcpy(&bits, &scale, 4);
    bits = (bits + 0x7fffffu) & 0xff800000u;
    float up;
    std::memcpy(&up, &bits, 4);
    return up;
}

// W bytes to W lanes and back. Written out: compilers make these of generic vectors a byte at a time.
INLINE vu widen(const uint8_t* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
    return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    vb bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, vu);
#endif
}

INLINE void narrow(vu lanes, uint8_t* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)lanes));
#elif defined(__AVX2__)
    const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  // of each half
                                           0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i halves = _mm256_shuffle_epi8((__m256i)lanes, first);
    const __m256i joined = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 1, 1, 1, 1, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(joined));
#else
    const vb bytes = __builtin_convertvector(lanes, vb);
    std::memcpy(p, &bytes, sizeof bytes);
#endif
}

// W values to W bytes. |x| beyond 448 saturates; to nearest, ties to even.
INLINE void encode_fp8(vf x, uint8_t* p) {
    x = smaller(splat(FP8_MAX), larger(splat(-FP8_MAX), x));
    const vu bits = (vu)x, magnitude = bits & 0x7fffffffu;
    const vu normal = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
    const vu subnormal = (vu)((vf)magnitude + 16384.f) - 0x46800000u;  // one step of 2^14's last bit is 2^-9
    const vu code = ((vi)magnitude < 0x3c800000) ? subnormal : normal;  // below 2^-6
    narrow(code | ((bits >> 24) & 0x80u), p);
}

INLINE vf decode_fp8(const uint8_t* p) {
    const vu code = widen(p), magnitude = code & 0x7fu;
    const vf subnormal = __builtin_convertvector((vi)magnitude, vf) * 0x1p-9f;
    const vu normal = (magnitude << 20) + (120u << 23);
    return (vf)((vu)(((vi)magnitude < 8) ? subnormal : (vf)normal) | ((code & 0x80u) << 24));
}

INLINE float decode_fp8_one(uint8_t code) {
    const uint32_t magnitude = code & 0x7fu;
    float value = magnitude * 0x1p-9f;
    if (magnitude >= 8) {
        const uint32_t bits = (magnitude << 20) + (120u << 23);
        std::memcpy(&value, &bits, 4);
    }
    return code & 0x80u ? -value : value;
}

// n bytes to n floats.
INLINE void decode_run(const uint8_t* p, int64_t n, float* y) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, decode_fp8(p + i));
    for (; i < n; ++i) y[i] = decode_fp8_one(p[i]);
}

// n floats divided by `scale` to n bytes.
INLINE void encode_run(const float* x, int64_t n, float scale, uint8_t* q) {
    int64_t i = 0;
    for (; i + W <= n; i += W) encode_fp8(load(x + i) / splat(scale), q + i);
    if (i == n) return;
    alignas(64) float rest[W] = {};
    uint8_t bytes[W];
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    encode_fp8(load(rest) / splat(scale), bytes);
    std::memcpy(q + i, bytes, n - i);
}

INLINE float largest(const float* x, int64_t n) {
    vf m = {};
    int64_t i = 0;
    for (; i + W <= n; i += W) m = larger(m, absolute(load(x + i)));
    float out = largest_lane(m);
    for (; i < n; ++i) out = std::max(out, std::fabs(x[i]));
    return out;
}

}  // namespace fathom
