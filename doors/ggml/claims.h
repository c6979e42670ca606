// Which nodes of the engine's graphs we take.
#pragma once

#include <cstdint>

#include "adamas/adamas.h"
#include "nodes.h"

namespace adamas_ggml {

// The scheduler's question: do we compute this node? Of each graph that the engine builds it asks about the leaves in memory
// (weights, caches), each once; then about the nodes in their order; then again about those that we did not take. Its
// interface has no begin of a graph, but a cache is such a leaf: its question begins the graph for what we know of that
// cache.
//
// To ask is to show a node. The nodes of a graph shown, any of them may be asked about again, in any order: the answer is
// the same, and nothing else happens. Two things are out of reach:
//
// The first question about a SET_ROWS comes before K's PERMUTE has shown how long the context is, and nothing leads from a
// SET_ROWS to its attention. Until then the graph before speaks for this one. So the answer about a SET_ROWS may turn from
// no to yes within a graph, once; for that the scheduler asks again, and a yes it keeps.
//
// Of a graph that stays with the CPU we see nothing but the questions. The keys that it writes count as changed once, when
// it is planned, be it never computed or a hundred times. Whoever plans in between attends to no codes; a second context
// that shares the cache and computes an older graph again has the core's hashes.
bool claims(const ggml_tensor* node);

// So many rows of a sequence at once are a prompt: encoded when they are written, and read by the engine with
// ADAMAS_ROWS=decode. Fewer are decoding, one row of each sequence where several share the cells (unified KV), or drafted
// tokens, or a short prompt on top of a long context: encoded by the step that first looks at them, and sparse.
inline constexpr int64_t prompt_rows = ADAMAS_PROMPT_ROWS;

}  // namespace adamas_ggml
