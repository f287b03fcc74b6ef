// rows @ weightᵀ + bias in float32, with weights that are float32 or bfloat16 in memory.
//
// A weight is packed into panels of 32 outputs: [panel][input][output of the panel], so that a panel
// is read once, from its first byte to its last. A tile of some rows and outputs stays in registers
// while it runs down a block of inputs:
//
//     out[r][n] = ((bias[n] + sum over inputs 0..255) + sum over inputs 256..511) + ...
//
// Each sum adds its products one by one, each product and addition rounded once. So an element of
// the output is the same bits in any tile, for any number of rows and threads; blocks keep the
// rounding error of long sums small.

#include <algorithm>
#include <utility>

#include "kernels.h"
#include "lanes.h"

namespace twinflow {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int kBlockInputs = 256;
// Accumulators fit into registers beside the weights that they are fed from.
constexpr int kTileRows = kLaneRegisters == 8 ? 6 : 12;
// Rows that are kept in the second level cache while the panels pass by.
constexpr int64_t kCachedFloats = 128 << 10;
constexpr int kMaxBlockRows = 240;
// Memory takes as long to answer as the multiplication of so many bytes of weights by a few rows.
constexpr int kFetchBytes = 4096;
// Products for which it is worth waking other threads.
constexpr int64_t kWorthSharing = 1 << 17;

// Sums and a weight leave one register for values. The compiler would keep the values of one group
// for the next one, and sums in memory instead.
template <int kRows, int kGroups>
constexpr bool kCrowded = kGroups == 2 && 2 * kRows > kLaneRegisters - 4;

// A tile's place: rows and a block of inputs of one panel.
template <class Weight>
struct Tile {
    const float* rows;
    int64_t row_stride;
    const Weight* panel;
    int inputs;
    const float* base;  // what the sums are added to
    int64_t base_stride;
    float* out;
    int64_t out_stride;
    // Weights that are fetched meanwhile, and so many bytes of them for each input.
    const char* ahead = nullptr;
    int64_t ahead_step = 0;
};

// `kOnce`: nobody reads these weights again in this step, and they need not stay in a cache.
template <class Weight, int kRows, int kGroups, bool kOnce>
inline void multiply_groups(const Tile<Weight>& tile, int column, const char* ahead) {
    constexpr auto kHint = kOnce ? _MM_HINT_NTA : _MM_HINT_T0;

    Lanes sums[kRows][kGroups];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) sums[r][g] = splat(0.0f);
    }
    const Weight* weights = tile.panel + column;
    const float* values = tile.rows;
    const int64_t stride = tile.row_stride, step = tile.ahead_step;
    for (const float* end = values + tile.inputs; values < end; ++values) {
        _mm_prefetch(ahead, kHint);
        if (sizeof(Weight) == 4) _mm_prefetch(ahead + 64, kHint);
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
            if (kCrowded<kRows, kGroups>) asm volatile("" ::: "memory");
            const Lanes weight = load_packed(weights + g * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
                const Lanes value = splat(values[r * stride]);
                sums[r][g] = multiply_add(value, weight, sums[r][g]);
            }
        }
        weights += kPanel;
        ahead += step;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
            const int at = column + g * kLanes;
            const Lanes base = load(tile.base + r * tile.base_stride + at);
            store(tile.out + r * tile.out_stride + at, base + sums[r][g]);
        }
    }
}

// How often a tile of so many rows runs down its inputs.
constexpr int passes_of(int rows) { return 2 * rows <= kLaneRegisters - 2 ? 1 : 2; }

template <class Weight, int kRows, bool kOnce>
void multiply_tile(const Tile<Weight>& tile) {
    if (passes_of(kRows) == 1) {
        multiply_groups<Weight, kRows, 2, kOnce>(tile, 0, tile.ahead);
    } else {
        const char* second = tile.ahead + tile.inputs * tile.ahead_step;
        multiply_groups<Weight, kRows, 1, kOnce>(tile, 0, tile.ahead);
        multiply_groups<Weight, kRows, 1, kOnce>(tile, kLanes, second);
    }
}

template <class Weight>
using TileKernel = void (*)(const Tile<Weight>&);

template <class Weight, bool kOnce, int... kRows>
TileKernel<Weight> kernel_for(int rows, std::integer_sequence<int, kRows...>) {
    static constexpr TileKernel<Weight> kKernels[] = {multiply_tile<Weight, kRows + 1, kOnce>...};
    return kKernels[rows - 1];
}

// One block of inputs of one panel, for a few rows: memory is what takes time.
template <class Weight>
void multiply_once(Tile<Weight> tile, int rows) {
    tile.ahead = reinterpret_cast<const char*>(tile.panel) + kFetchBytes;
    tile.ahead_step = kPanel * sizeof(Weight);
    kernel_for<Weight, true>(rows, std::make_integer_sequence<int, kTileRows>())(tile);
}

// One block of inputs of one panel, for any number of rows: `tile` is the first row's. Each pass
// fetches its part of the block behind this one, so that memory is never idle.
template <class Weight>
void multiply_block(Tile<Weight> tile, int64_t num_rows) {
    int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
    const int64_t passes = tiles * passes_of(static_cast<int>((num_rows + tiles - 1) / tiles));
    if (passes == 1) return multiply_once(tile, static_cast<int>(num_rows));
    tile.ahead = reinterpret_cast<const char*>(tile.panel + tile.inputs * kPanel);
    tile.ahead_step = static_cast<int64_t>(kPanel * sizeof(Weight)) / passes;
    for (; tiles > 0; --tiles) {
        const int rows = static_cast<int>((num_rows + tiles - 1) / tiles);
        kernel_for<Weight, false>(rows, std::make_integer_sequence<int, kTileRows>())(tile);
        tile.ahead += passes_of(rows) * tile.inputs * tile.ahead_step;
        tile.rows += rows * tile.row_stride;
        tile.base += rows * tile.base_stride;
        tile.out += rows * tile.out_stride;
        num_rows -= rows;
    }
}

// All inputs of one panel; `out` has 32 columns, some of which may be padding.
template <class Weight>
void multiply_panel(const LinearLayer& layer, int64_t panel, const float* rows, int64_t num_rows,
                    float* out, int64_t out_stride) {
    const int64_t width = layer.in_features;
    const Weight* weights = static_cast<const Weight*>(layer.panels) + panel * width * kPanel;
    Tile<Weight> tile{rows, width, weights, 0, layer.bias + panel * kPanel, 0, out, out_stride};
    for (int64_t start = 0; start < width; start += kBlockInputs) {
        tile.inputs = static_cast<int>(std::min<int64_t>(kBlockInputs, width - start));
        multiply_block(tile, num_rows);
        tile.rows += tile.inputs;
        tile.panel += tile.inputs * kPanel;
        tile.base = out;
        tile.base_stride = out_stride;
    }
}

// A panel that is cut off by the end of the output.
template <class Weight>
void multiply_last_panel(const LinearLayer& layer, int64_t panel, const float* rows,
                         int64_t num_rows, float* out) {
    alignas(64) float whole[kMaxBlockRows * kPanel];
    multiply_panel<Weight>(layer, panel, rows, num_rows, whole, kPanel);
    const int64_t columns = layer.out_features - panel * kPanel;
    for (int64_t r = 0; r < num_rows; ++r) {
        std::copy_n(whole + r * kPanel, columns, out + r * layer.out_features);
    }
}

template <class Weight>
void multiply_panels(const LinearLayer& layer, Range panels, const float* rows, int64_t num_rows,
                     float* out) {
    const int64_t fitting = kCachedFloats / layer.in_features / kTileRows * kTileRows;
    const int64_t block = std::clamp<int64_t>(fitting, kTileRows, kMaxBlockRows);
    for (int64_t start = 0; start < num_rows; start += block) {
        const int64_t count = std::min(block, num_rows - start);
        const float* block_rows = rows + start * layer.in_features;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            float* to = out + start * layer.out_features + panel * kPanel;
            if ((panel + 1) * kPanel <= layer.out_features) {
                multiply_panel<Weight>(layer, panel, block_rows, count, to, layer.out_features);
            } else {
                multiply_last_panel<Weight>(layer, panel, block_rows, count, to);
            }
        }
    }
}

bool is_worth_sharing(const LinearLayer& layer, int64_t num_rows) {
    return num_rows * layer.in_features * layer.out_features >= kWorthSharing;
}

template <class Weight>
void pack_panels(const LinearLayer& layer, const Weight* weight) {
    Weight* to = static_cast<Weight*>(layer.panels);
    for (int64_t first = 0; first < layer.out_features; first += kPanel) {
        for (int64_t k = 0; k < layer.in_features; ++k, to += kPanel) {
            for (int column = 0; column < kPanel; ++column) {
                const int64_t output = first + column;
                const int group = column / kLanes * kLanes;
                Weight& place = to[group + packed_place<Weight>(column % kLanes)];
                place = output < layer.out_features ? weight[output * layer.in_features + k] : 0;
            }
        }
    }
}

}  // namespace

// Fill the panels of a layer from a weight [out_features][in_features] of the same element type.
extern "C" void twinflow_pack(const LinearLayer* layer, const void* weight) {
    if (layer->element_size == 2) {
        pack_panels(*layer, static_cast<const BFloat16*>(weight));
    } else {
        pack_panels(*layer, static_cast<const float*>(weight));
    }
}

void linear(const Crew& crew, const LinearLayer& layer, const float* rows, int64_t num_rows,
            float* out) {
    const int64_t panels = (layer.out_features + kPanel - 1) / kPanel;
    crew.share(panels, is_worth_sharing(layer, num_rows), [&](Range mine) {
        if (layer.element_size == 2) {
            multiply_panels<BFloat16>(layer, mine, rows, num_rows, out);
        } else {
            multiply_panels<float>(layer, mine, rows, num_rows, out);
        }
    });
}

extern "C" void twinflow_linear(const LinearLayer* layer, const float* rows, int64_t num_rows,
                                float* out) {
    with_crew(is_worth_sharing(*layer, num_rows),
              [=](const Crew& crew) { linear(crew, *layer, rows, num_rows, out); });
}

}  // namespace twinflow
