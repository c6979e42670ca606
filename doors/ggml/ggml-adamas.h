/* What the back end offers to a program that runs the engine itself: look the functions up in its library with dlsym. Both
 * concern the whole process and take effect with the next graph; call them while no graph is computed. */
#ifndef GGML_ADAMAS_H
#define GGML_ADAMAS_H

#include "adamas/adamas.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The settings from now on, and for the layers that sections of the settings file `layers` name, what these say (NULL: no
 * file; one of the environment is forgotten). Before the engine has loaded the library, it keeps it from reading any setting
 * in the environment. The engine reuses a graph together with what its first settings claimed of it: run with
 * LLAMA_GRAPH_REUSE_DISABLE=1. A context must be decoded with the settings that it began with, or its codes are made anew:
 * set them before each llama_decode when contexts of different settings take turns. */
ADAMAS_API adamas_status adamas_configure(const adamas_config* config, const char* layers);

/* `observer` is called after each attention node that was computed here, on the thread that computed it; NULL ends it. What
 * it is shown lives until it returns: q, k, v, out, mass and noise in `step`, and adamas_selection(plan, ...) for the last
 * row. */
typedef struct adamas_observation {
  int32_t layer;
  int32_t q_heads, kv_heads, head_dim;
  const adamas_plan* plan;
  const adamas_step_params* step;
  const adamas_step_stats* stats;
} adamas_observation;
typedef void (*adamas_observer_fn)(void* user, const adamas_observation* observation);
ADAMAS_API void adamas_observe(adamas_observer_fn observer, void* user);

#ifdef __cplusplus
}
#endif

#endif
