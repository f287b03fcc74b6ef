// The operations, as the threads of a crew carry them out together, and what they are told.
//
// The structures are shared with Python: `library.py` has their twins.
#pragma once

#include <cstdint>

#include "threads.h"

namespace twinflow {

// A linear layer.
struct LinearLayer {
    void* panels;       // [out_features / 32, rounded up][in_features][32]
    const float* bias;  // as many as there are columns in panels
    int64_t in_features;
    int64_t out_features;
    int64_t element_size;  // of the panels: 4 for float32, 2 for bfloat16
};

// Heads of queries, keys and values of rows, and what is done to them.
struct Heads {
    float* rows;  // [num_rows][query_heads + 2 * kv_heads][head_dim]
    int64_t num_rows;
    int64_t query_heads;
    int64_t kv_heads;
    int64_t head_dim;
    const float* table;  // [num_rows][2][head_dim]: cosines, then signed sines
    const float* norm;  // [query_heads + kv_heads][head_dim], or null
    float eps;
    float query_factor;
};

// Where the keys and values of tokens are stored.
struct Slots {
    const int64_t* rows;  // [num_rows][stored_heads] in the plane of a layer, each of head_dim
    int64_t num_rows;
    int64_t row_stride;  // elements between the keys of two tokens where they come from
    int64_t stored_heads;
    int64_t head_dim;
    int64_t element_size;  // of the plane: 4 for float32, 2 for bfloat16
};

// The rows of a step; S sequences.
struct AttentionStep {
    const int64_t* starts;        // [S] position of the first row
    const int64_t* counts;        // [S] rows
    const int64_t* first_rows;    // [S] among those of all sequences
    const int64_t* blocks;        // block tables, one after another
    const int64_t* first_blocks;  // [S] where a table begins
    const int64_t* item_sequences;
    const int64_t* item_rows;  // first row of the item within its sequence
    int64_t num_items;
    int64_t rows_per_item;
};

// The heads of a cache.
struct AttentionShape {
    const int64_t* head_rows;  // [kv_heads] row of a head in block 0
    int64_t rows_per_block;    // distance of two blocks in rows
    int64_t block_size;
    int64_t head_dim;
    int64_t query_heads;
    int64_t kv_heads;
    int64_t element_size;  // of keys and values: 4 for float32, 2 for bfloat16
};

// What attention reads and writes.
struct Attended {
    const void* keys;    // plane of a layer
    const void* values;  // likewise
    const float* queries;  // [query_heads][head_dim] of each row, scaled
    int64_t query_stride;  // elements between two rows
    float* out;            // [rows][query_heads * head_dim]
};

// rows [num_rows][in_features] to out [num_rows][out_features].
void linear(const Crew& crew, const LinearLayer& layer, const float* rows, int64_t num_rows,
            float* out);

// hidden += delta, unless that is null; out = norm(hidden), unless that is null. All
// [num_rows][width].
struct NormedRows {
    float* hidden;
    const float* delta;
    const float* weight;
    float* out;
    int64_t num_rows;
    int64_t width;
    float eps;
};
void add_norm(const Crew& crew, const NormedRows& rows);

// silu(gate) * up of rows [gate | up], each of `width`.
void gated_silu(const Crew& crew, const float* rows, float* out, int64_t num_rows, int64_t width);

// Normalise and rotate queries and keys in place, scale queries.
void rotate(const Crew& crew, const Heads& heads);

// Store the keys and values of tokens, [num_rows][stored_heads][head_dim], in the plane of a layer.
void store(const Crew& crew, const Slots& slots, const float* keys_values, void* plane);

void attend(const Crew& crew, const AttentionStep& step, const AttentionShape& shape,
            const Attended& attended);

}  // namespace twinflow
