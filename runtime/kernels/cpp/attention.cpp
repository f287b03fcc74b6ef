// Causal attention of rows over keys and values in blocks; see `native_attention.py`.
//
// An item is a few rows of one sequence and one head of keys and values, with the query heads that
// share it: keys and values are brought from memory once for all of them. Their keys pass in tiles
// of 32 tokens from position 0. For each row and query head (FlashAttention, arXiv 2205.14135,
// algorithm 1):
//
//     s = q k,  m' = max(m, s),  p = exp(s - m'),  l = exp(m - m') l + sum p,
//     o = exp(m - m') o + sum p v;                                    the result is o / l
//
// A row stops at its own position. Nothing else about the item enters its sums, so a row's bits
// depend on its own sequence only.

#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"
#include "lanes.h"

namespace twinflow {
namespace {

constexpr int kTileTokens = 32;
// Columns of values that are added up in registers.
constexpr int kColumnGroups = kLaneRegisters == 8 ? 4 : 8;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// A token tile of one head.
template <class Element>
struct Tile {
    const Element* keys[kTileTokens];
    const Element* values[kTileTokens];
};

// The unfinished result of one row and query head.
struct Sums {
    float maximum, total;
    float* weighted;  // [head_dim, rounded up]
};

template <class Element>
class Attention {
  public:
    Attention(const AttentionStep& step, const AttentionShape& shape, const Element* keys,
              const Element* values, int64_t query_stride)
        : step_(step),
          shape_(shape),
          keys_(keys),
          values_(values),
          query_stride_(query_stride),
          groups_((shape.head_dim + kLanes - 1) / kLanes),
          tail_(shape.head_dim % kLanes),
          shared_(shape.query_heads / shape.kv_heads) {}

    // Compute the rows of an item; `scratch` is kept by the thread.
    void compute(int64_t item, int64_t kv_head, const float* queries, float* out,
                 std::vector<float>& scratch) const {
        const int64_t sequence = step_.item_sequences[item], first = step_.item_rows[item];
        const int64_t count = std::min(step_.rows_per_item, step_.counts[sequence] - first);
        const int64_t position = step_.starts[sequence] + first;
        const int64_t row = step_.first_rows[sequence] + first;
        const int64_t padded = groups_ * kLanes, lines = count * shared_;
        scratch.assign(2 * lines * padded, 0.0f);
        float* padded_queries = scratch.data();
        sums_.clear();
        for (int64_t line = 0; line < lines; ++line) {
            const int64_t head = kv_head * shared_ + line % shared_;
            const float* query = queries + (row + line / shared_) * query_stride_;
            std::copy_n(query + head * shape_.head_dim, shape_.head_dim,
                        padded_queries + line * padded);
            sums_.push_back({kNothing, 0.0f, scratch.data() + (lines + line) * padded});
        }
        for (int64_t token = 0; token < position + count; token += kTileTokens) {
            const Tile<Element> tile = find(sequence, kv_head, token, position + count);
            for (int64_t line = 0; line < lines; ++line) {
                const int64_t visible = position + line / shared_ + 1 - token;
                if (visible > 0) {
                    add(tile, static_cast<int>(std::min<int64_t>(visible, kTileTokens)),
                        padded_queries + line * padded, sums_[line]);
                }
            }
        }
        for (int64_t line = 0; line < lines; ++line) {
            const int64_t head = kv_head * shared_ + line % shared_;
            float* to = out + ((row + line / shared_) * shape_.query_heads + head) *
                                  shape_.head_dim;
            for (int64_t i = 0; i < shape_.head_dim; ++i) {
                to[i] = sums_[line].weighted[i] / sums_[line].total;
            }
        }
    }

  private:
    // Where the tokens of a tile are; behind the end of the sequence its last one is repeated.
    Tile<Element> find(int64_t sequence, int64_t kv_head, int64_t first, int64_t end) const {
        Tile<Element> tile;
        const int64_t* table = step_.blocks + step_.first_blocks[sequence];
        for (int i = 0; i < kTileTokens; ++i) {
            const int64_t token = std::min(first + i, end - 1);
            const int64_t block = table[token / shape_.block_size];
            const int64_t plane = block * shape_.rows_per_block + shape_.head_rows[kv_head];
            const int64_t slot = plane * shape_.block_size + token % shape_.block_size;
            tile.keys[i] = keys_ + slot * shape_.head_dim;
            tile.values[i] = values_ + slot * shape_.head_dim;
        }
        return tile;
    }

    Lanes element_group(const Element* vector, int64_t group) const {
        const bool is_whole = tail_ == 0 || group + 1 < groups_;
        const Element* from = vector + group * kLanes;
        return is_whole ? load(from) : load_some(from, tail_);
    }

    // Scores of four keys.
    __m128 score(const float* query, const Element* const* keys) const {
        Lanes a = splat(0.0f), b = a, c = a, d = a;
        for (int64_t group = 0; group < groups_; ++group) {
            const Lanes q = load(query + group * kLanes);
            a = multiply_add(q, element_group(keys[0], group), a);
            b = multiply_add(q, element_group(keys[1], group), b);
            c = multiply_add(q, element_group(keys[2], group), c);
            d = multiply_add(q, element_group(keys[3], group), d);
        }
        return twinflow::sums(a, b, c, d);
    }

    // Let one query see the first `visible` tokens of a tile.
    void add(const Tile<Element>& tile, int visible, const float* query, Sums& sums) const {
        alignas(64) float weights[kTileTokens];
        for (int i = 0; i < visible; i += 4) _mm_store_ps(weights + i, score(query, tile.keys + i));
        for (int i = visible; i < kTileTokens; ++i) weights[i] = kNothing;
        Lanes first = load(weights), second = load(weights + kLanes);
        const float maximum = std::max(sums.maximum, largest(larger(first, second)));
        const Lanes shift = splat(maximum);
        first = exponential(first - shift);
        second = exponential(second - shift);
        store(weights, first);
        store(weights + kLanes, second);
        const float scale = exponential_of(sums.maximum - maximum);
        sums.maximum = maximum;
        sums.total = sums.total * scale + sum(first + second);
        for (int64_t group = 0; group < groups_; group += kColumnGroups) {
            if (group + kColumnGroups <= groups_ && tail_ == 0) {
                weigh<kColumnGroups>(tile, visible, weights, scale, group, sums.weighted);
            } else {
                const int64_t end = std::min<int64_t>(group + kColumnGroups, groups_);
                for (int64_t g = group; g < end; ++g) {
                    weigh<1>(tile, visible, weights, scale, g, sums.weighted);
                }
            }
        }
    }

    // Some columns of `o = scale * o + sum p v`.
    template <int kGroups>
    void weigh(const Tile<Element>& tile, int visible, const float* weights, float scale,
               int64_t group, float* weighted) const {
        Lanes total[kGroups];
        float* columns = weighted + group * kLanes;
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) total[g] = load(columns + g * kLanes) * splat(scale);
        for (int i = 0; i < visible; ++i) {
            const Lanes weight = splat(weights[i]);
#pragma GCC unroll 8
            for (int g = 0; g < kGroups; ++g) {
                total[g] = multiply_add(weight, element_group(tile.values[i], group + g), total[g]);
            }
        }
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) store(columns + g * kLanes, total[g]);
    }

    static float exponential_of(float x) {
        float lanes[kLanes];
        store(lanes, exponential(splat(x)));
        return lanes[0];
    }

    const AttentionStep& step_;
    const AttentionShape& shape_;
    const Element* keys_;
    const Element* values_;
    const int64_t query_stride_;
    const int64_t groups_;
    const int64_t tail_;
    const int64_t shared_;
    mutable std::vector<Sums> sums_;
};

// Items are dealt out one by one: those of a long prompt grow from the first to the last.
template <class Element>
void attend_items(const Crew& crew, const AttentionStep& step, const AttentionShape& shape,
                  const Attended& attended) {
    const int64_t work = step.num_items * shape.kv_heads;
    crew.share(crew.threads, true, [&](Range) {
        const Attention<Element> attention(
            step, shape, static_cast<const Element*>(attended.keys),
            static_cast<const Element*>(attended.values), attended.query_stride);
        std::vector<float> scratch;
        for (int64_t i = crew.thread; i < work; i += crew.threads) {
            attention.compute(i / shape.kv_heads, i % shape.kv_heads, attended.queries,
                              attended.out, scratch);
        }
    });
}

}  // namespace

void attend(const Crew& crew, const AttentionStep& step, const AttentionShape& shape,
            const Attended& attended) {
    if (shape.element_size == 2) {
        attend_items<BFloat16>(crew, step, shape, attended);
    } else {
        attend_items<float>(crew, step, shape, attended);
    }
}

extern "C" void twinflow_attend(const AttentionStep* step, const AttentionShape* shape,
                                const Attended* attended) {
    with_crew(true, [=](const Crew& crew) { attend(crew, *step, *shape, *attended); });
}

}  // namespace twinflow
