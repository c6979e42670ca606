/* Preloaded, it spoils what the library answers: ADAMAS_FAULT=step adds a tenth to the first output of every step,
 * ADAMAS_FAULT=selection names one token twice. */
#define _GNU_SOURCE
#include <adamas/adamas.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static int is_fault(const char* name) {
  const char* chosen = getenv("ADAMAS_FAULT");
  return chosen != NULL && strcmp(chosen, name) == 0;
}

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bytes are the same. */
static void next(void* function, const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  memcpy(function, &found, sizeof found);
}

adamas_status adamas_step(adamas_plan* plan, adamas_cache* cache, const adamas_step_params* params) {
  adamas_status (*step)(adamas_plan*, adamas_cache*, const adamas_step_params*);
  next(&step, "adamas_step");
  adamas_status status = step(plan, cache, params);
  if (status == ADAMAS_OK && is_fault("step")) params->out[0] += 0.1f;
  return status;
}

adamas_status adamas_selection(const adamas_plan* plan, int32_t q_head, int64_t* indices, int64_t size, int64_t* count) {
  adamas_status (*selection)(const adamas_plan*, int32_t, int64_t*, int64_t, int64_t*);
  next(&selection, "adamas_selection");
  adamas_status status = selection(plan, q_head, indices, size, count);
  if (status == ADAMAS_OK && is_fault("selection") && size > 1) indices[1] = indices[0];
  return status;
}
