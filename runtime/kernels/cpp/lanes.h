// Sixteen float32 lanes: two registers on AVX2, one on AVX-512.
//
// Kernels are written once against this type. An operation is the same IEEE operation on every lane,
// whatever the width of the registers, so that both kinds of processor compute the same bits.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace twinflow {

constexpr int kLanes = 16;

// The upper half of a float32.
using BFloat16 = uint16_t;

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

// Registers that hold `Lanes`.
constexpr int kLaneRegisters = 32;

struct Lanes {
    __m512 all;
};

inline Lanes splat(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.all); }
inline Lanes load(const BFloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.all, b.all)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.all, b.all)}; }

// a * b + c, rounded once.
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}

// Where `load_packed` looks for a lane.
template <class Element>
constexpr int packed_place(int lane) {
    return lane;
}
inline Lanes load_packed(const float* from) { return load(from); }
inline Lanes load_packed(const BFloat16* from) { return load(from); }

// The nearest whole numbers.
inline Lanes rounded(Lanes a) {
    return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole numbers n that keep the result normal.
inline Lanes times_power_of_two(Lanes a, Lanes n) {
    const __m512i exponents = _mm512_slli_epi32(_mm512_cvtps_epi32(n.all), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.all), exponents))};
}
// a where x >= limit, else 0.
inline Lanes where_at_least(Lanes x, Lanes limit, Lanes a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.all, limit.all, _CMP_GE_OQ), a.all)};
}
// Lane i plus lane i + 8.
inline __m256 fold(Lanes a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a.all), _mm512_extractf32x8_ps(a.all, 1));
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kLaneRegisters = 8;

struct Lanes {
    __m256 low, high;
};

inline Lanes splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Lanes a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
inline Lanes load(const BFloat16* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline Lanes operator+(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes operator-(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes operator*(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes operator/(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes larger(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Lanes smaller(Lanes a, Lanes b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

// Lanes i and i + 8 share a word of memory: a shift and a mask widen all sixteen.
template <class Element>
constexpr int packed_place(int lane) {
    return sizeof(Element) == 4 ? lane : lane < 8 ? 2 * lane : 2 * (lane - 8) + 1;
}
inline Lanes load_packed(const float* from) { return load(from); }
inline Lanes load_packed(const BFloat16* from) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(words, upper))};
}

inline Lanes rounded(Lanes a) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kMode), _mm256_round_ps(a.high, kMode)};
}
inline __m256 times_power_of_two(__m256 a, __m256 n) {
    const __m256i exponents = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponents));
}
inline Lanes times_power_of_two(Lanes a, Lanes n) {
    return {times_power_of_two(a.low, n.low), times_power_of_two(a.high, n.high)};
}
inline Lanes where_at_least(Lanes x, Lanes limit, Lanes a) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_GE_OQ), a.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_GE_OQ), a.high)};
}
inline __m256 fold(Lanes a) { return _mm256_add_ps(a.low, a.high); }

#else
#error "the kernels need a processor with AVX2 and FMA, or AVX-512"
#endif

// The first `count` lanes; the others are zero, and what lies there is not read.
template <class Element>
inline Lanes load_some(const Element* from, int64_t count) {
    Element whole[kLanes] = {};
    std::copy_n(from, count, whole);
    return load(whole);
}

inline void store_some(float* to, Lanes a, int64_t count) {
    float whole[kLanes];
    store(whole, a);
    std::copy_n(whole, count, to);
}

// Lanes in pairs at a distance of 8, then 4.
inline __m128 fold_to_four(Lanes a) {
    const __m256 eight = fold(a);
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

// The sum of the lanes of each of four: in pairs at a distance of 8, then 4, then 2, then 1.
inline __m128 sums(Lanes a, Lanes b, Lanes c, Lanes d) {
    __m128 first = fold_to_four(a), second = fold_to_four(b);
    __m128 third = fold_to_four(c), fourth = fold_to_four(d);
    _MM_TRANSPOSE4_PS(first, second, third, fourth);
    return _mm_add_ps(_mm_add_ps(first, third), _mm_add_ps(second, fourth));
}

inline float sum(Lanes a) { return _mm_cvtss_f32(sums(a, a, a, a)); }

inline float largest(Lanes a) {
    alignas(64) float lanes[kLanes];
    store(lanes, a);
    return *std::max_element(lanes, lanes + kLanes);
}

// exp(x) within 2 units in the last place, 0 below exp(-87): the range is reduced to half a power
// of two (Cody and Waite), and a polynomial does the rest (coefficients of Cephes' expf).
inline Lanes exponential(Lanes x) {
    const Lanes least = splat(-87.0f);
    const Lanes bounded = smaller(larger(x, least), splat(88.0f));
    const Lanes n = rounded(bounded * splat(1.44269504f));
    Lanes r = multiply_add(n, splat(-0.693359375f), bounded);
    r = multiply_add(n, splat(2.12194440e-4f), r);
    Lanes p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p * r, r, r) + splat(1.0f);
    return where_at_least(x, least, times_power_of_two(p, n));
}

}  // namespace twinflow
