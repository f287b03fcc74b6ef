// Operations on rows: norm, gated activation, rotary embedding, storing keys and values.
//
// Each row is computed for itself, by one thread.

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "lanes.h"

namespace twinflow {
namespace {

// Elements for which it is worth waking other threads.
constexpr int64_t kWorthSharing = 1 << 16;

// Call `work(first element, elements)` for every sixteen elements of a row and what is left.
template <class Work>
inline void by_lanes(int64_t width, Work&& work) {
    int64_t at = 0;
    for (; at + kLanes <= width; at += kLanes) work(at, kLanes);
    if (at < width) work(at, static_cast<int>(width - at));
}

inline Lanes take(const float* from, int count) {
    return count == kLanes ? load(from) : load_some(from, count);
}

inline void put(float* to, Lanes a, int count) {
    if (count == kLanes) {
        store(to, a);
    } else {
        store_some(to, a, count);
    }
}

// row / sqrt(mean(row²) + eps) * weight.
inline void normalise(const float* row, const float* weight, int64_t width, float eps, float* out) {
    Lanes squares = splat(0.0f);
    by_lanes(width, [&](int64_t at, int count) {
        const Lanes value = take(row + at, count);
        squares = multiply_add(value, value, squares);
    });
    const float mean = sum(squares) / static_cast<float>(width);
    const Lanes factor = splat(1.0f / std::sqrt(mean + eps));
    by_lanes(width, [&](int64_t at, int count) {
        put(out + at, take(row + at, count) * factor * take(weight + at, count), count);
    });
}

// x[i] * cos[i] + x[i + half] * sin[i], `sin` negative in the first half; times a factor.
inline void rotate(float* head, const float* cos, const float* sin, int64_t half, float factor) {
    for (int64_t i = 0; i < half; ++i) {
        const float first = head[i], second = head[i + half];
        head[i] = (first * cos[i] + second * sin[i]) * factor;
        head[i + half] = (second * cos[i + half] + first * sin[i + half]) * factor;
    }
}

inline void copy_as(const float* from, int64_t count, float* to) { std::copy_n(from, count, to); }

// Rounded to the nearest, of two equally near to the even one. No NaN comes here.
inline void copy_as(const float* from, int64_t count, BFloat16* to) {
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, from + i, sizeof bits);
        to[i] = static_cast<BFloat16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}

}  // namespace

void add_norm(const Crew& crew, const NormedRows& rows) {
    const int64_t width = rows.width;
    crew.share(rows.num_rows, rows.num_rows * width >= kWorthSharing, [&](Range mine) {
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            float* row = rows.hidden + r * width;
            if (rows.delta != nullptr) {
                const float* add = rows.delta + r * width;
                for (int64_t i = 0; i < width; ++i) row[i] += add[i];
            }
            if (rows.out != nullptr) {
                normalise(row, rows.weight, width, rows.eps, rows.out + r * width);
            }
        }
    });
}

void gated_silu(const Crew& crew, const float* rows, float* out, int64_t num_rows, int64_t width) {
    crew.share(num_rows, num_rows * width >= kWorthSharing, [=](Range mine) {
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const float* row = rows + r * 2 * width;
            by_lanes(width, [&](int64_t at, int count) {
                const Lanes gate = take(row + at, count), up = take(row + width + at, count);
                const Lanes one = splat(1.0f);
                const Lanes silu = gate / (one + exponential(splat(0.0f) - gate));
                put(out + r * width + at, silu * up, count);
            });
        }
    });
}

void rotate(const Crew& crew, const Heads& heads) {
    const int64_t dim = heads.head_dim, rotated = heads.query_heads + heads.kv_heads;
    const int64_t width = (rotated + heads.kv_heads) * dim;
    crew.share(heads.num_rows, heads.num_rows * width >= kWorthSharing, [&](Range mine) {
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const float* cos = heads.table + r * 2 * dim;
            for (int64_t h = 0; h < rotated; ++h) {
                float* head = heads.rows + r * width + h * dim;
                if (heads.norm != nullptr) {
                    normalise(head, heads.norm + h * dim, dim, heads.eps, head);
                }
                const float factor = h < heads.query_heads ? heads.query_factor : 1.0f;
                rotate(head, cos, cos + dim, dim / 2, factor);
            }
        }
    });
}

void store(const Crew& crew, const Slots& slots, const float* keys_values, void* plane) {
    const int64_t dim = slots.head_dim, stored = slots.stored_heads;
    crew.share(slots.num_rows, slots.num_rows * stored * dim >= kWorthSharing, [&](Range mine) {
        for (int64_t r = mine.begin; r < mine.end; ++r) {
            const float* from = keys_values + r * slots.row_stride;
            for (int64_t h = 0; h < stored; ++h, from += dim) {
                const int64_t to = slots.rows[r * stored + h] * dim;
                if (slots.element_size == 2) {
                    copy_as(from, dim, static_cast<BFloat16*>(plane) + to);
                } else {
                    copy_as(from, dim, static_cast<float*>(plane) + to);
                }
            }
        }
    });
}

extern "C" void twinflow_add_norm(const NormedRows* rows) {
    const bool is_worth_it = rows->num_rows * rows->width >= kWorthSharing;
    with_crew(is_worth_it, [=](const Crew& crew) { add_norm(crew, *rows); });
}

extern "C" void twinflow_gated_silu(const float* rows, float* out, int64_t num_rows,
                                    int64_t width) {
    with_crew(num_rows * width >= kWorthSharing,
              [=](const Crew& crew) { gated_silu(crew, rows, out, num_rows, width); });
}

extern "C" void twinflow_rotate(const Heads* heads) {
    const int64_t elements = heads->num_rows * heads->query_heads * heads->head_dim;
    with_crew(elements >= kWorthSharing, [=](const Crew& crew) { rotate(crew, *heads); });
}

extern "C" void twinflow_store(const Slots* slots, const float* keys_values, void* plane) {
    const int64_t elements = slots->num_rows * slots->stored_heads * slots->head_dim;
    with_crew(elements >= kWorthSharing,
              [=](const Crew& crew) { store(crew, *slots, keys_values, plane); });
}

}  // namespace twinflow
