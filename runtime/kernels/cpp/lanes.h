// Sixteen float32 lanes: two registers on AVX2, one on AVX-512.
//
// Kernels are written once against this type. An operation is the same IEEE operation on every lane,
// whatever the width of the registers, so that both kinds of processor compute the same bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace twinflow {

constexpr int kLanes = 16;

// The upper half of a float32.
using BFloat16 = uint16_t;

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__)

// Registers that hold `Lanes`.
constexpr int kLaneRegisters = 32;

struct Lanes {
    __m512 all;
};

inline Lanes splat(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.all); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.all, b.all)}; }

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
inline Lanes load_packed(const BFloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
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
inline Lanes operator+(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
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

#else
#error "the kernels need a processor with AVX2 and FMA, or AVX-512"
#endif

}  // namespace twinflow
