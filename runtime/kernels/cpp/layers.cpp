// Consecutive decoder layers in one call; see `native_stack.py`.
//
// The operations are those that Python would call one by one, in the same order, so that every bit is
// the same. Threads start once for all layers and wait for each other between two operations.

#include "kernels.h"

namespace twinflow {

// Shared with Python: the weights of a layer.
struct DecoderLayer {
    const float* attention_norm;
    const LinearLayer* query_key_value;
    const float* head_norm;  // null for none
    const LinearLayer* output;
    const float* mlp_norm;
    const LinearLayer* gate_up;
    const LinearLayer* down;
};

// Shared with Python: the rows that pass the layers, and memory for what is between operations.
struct StackStep {
    float* hidden;  // [rows][width], changed
    int64_t num_rows;
    int64_t width;
    int64_t inner;  // width of an MLP
    float eps;
    const Heads* heads;  // but for `norm`; `rows` is memory for heads
    const Slots* slots;
    const AttentionStep* attention;
    const AttentionShape* shape;
    void* const* key_planes;  // of the layers
    void* const* value_planes;
    float* normed;    // [rows][width]
    float* delta;     // [rows][width]
    float* attended;  // [rows][query heads * head_dim]
    float* gate_up;   // [rows][2 * inner]
    float* gated;     // [rows][inner]
};

namespace {

// Adds what the block before has computed, if anything, and what this layer's attention does is
// left in `delta`.
void attention_block(const Crew& crew, const DecoderLayer& layer, int64_t index,
                     const StackStep& step, const float* before) {
    Heads heads = *step.heads;
    heads.norm = layer.head_norm;
    const int64_t row = (heads.query_heads + 2 * heads.kv_heads) * heads.head_dim;
    const float* keys = heads.rows + heads.query_heads * heads.head_dim;
    add_norm(crew, {step.hidden, before, layer.attention_norm, step.normed, step.num_rows,
                    step.width, step.eps});
    linear(crew, *layer.query_key_value, step.normed, step.num_rows, heads.rows);
    rotate(crew, heads);
    store(crew, *step.slots, keys, step.key_planes[index]);
    attend(crew, *step.attention, *step.shape,
           {step.key_planes[index], step.value_planes[index], heads.rows, row, step.attended});
    linear(crew, *layer.output, step.attended, step.num_rows, step.delta);
}

void mlp_block(const Crew& crew, const DecoderLayer& layer, const StackStep& step) {
    add_norm(crew, {step.hidden, step.delta, layer.mlp_norm, step.normed, step.num_rows, step.width,
                    step.eps});
    linear(crew, *layer.gate_up, step.normed, step.num_rows, step.gate_up);
    gated_silu(crew, step.gate_up, step.gated, step.num_rows, step.inner);
    linear(crew, *layer.down, step.gated, step.num_rows, step.delta);
}

}  // namespace

// Let rows pass `count` layers, whose keys and values are in as many planes.
extern "C" void twinflow_layers(const DecoderLayer* layers, int64_t count, const StackStep* step) {
    with_lasting_crew([=](const Crew& crew) {
        const float* before = nullptr;
        for (int64_t i = 0; i < count; ++i) {
            attention_block(crew, layers[i], i, *step, before);
            mlp_block(crew, layers[i], *step);
            before = step->delta;
        }
        add_norm(crew, {step->hidden, before, nullptr, nullptr, step->num_rows, step->width,
                        step->eps});
    });
}

}  // namespace twinflow
