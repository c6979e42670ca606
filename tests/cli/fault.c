/* Preloaded, it spoils what the library answers on every device but the reference, by ADAMAS_FAULT:
 *   step       the first output of every step is a tenth too large
 *   list       the same, a half, where the budget is automatic
 *   isa        the same, a tenth, with the last of the instruction sets only
 *   selection  one token is named twice
 *   codes      a bit of every block is another */
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

/* Of the last plan and cache: the self-test has one of each at a time. */
static int spoilt_plan, spoilt_cache, is_automatic;

adamas_status adamas_plan_create(const adamas_config* config, const adamas_plan_params* params, adamas_plan** plan) {
  adamas_status (*create)(const adamas_config*, const adamas_plan_params*, adamas_plan**);
  next(&create, "adamas_plan_create");
  spoilt_plan = params->device != ADAMAS_DEVICE_REFERENCE;
  is_automatic = config->budget == ADAMAS_BUDGET_AUTO;
  return create(config, params, plan);
}

adamas_status adamas_cache_create(const adamas_config* config, const adamas_cache_params* params, adamas_cache** cache) {
  adamas_status (*create)(const adamas_config*, const adamas_cache_params*, adamas_cache**);
  next(&create, "adamas_cache_create");
  spoilt_cache = params->device != ADAMAS_DEVICE_REFERENCE;
  return create(config, params, cache);
}

adamas_status adamas_step(adamas_plan* plan, adamas_cache* cache, const adamas_step_params* params) {
  adamas_status (*step)(adamas_plan*, adamas_cache*, const adamas_step_params*);
  next(&step, "adamas_step");
  adamas_status status = step(plan, cache, params);
  if (status != ADAMAS_OK || !spoilt_plan) return status;
  if (is_fault("step")) params->out[0] += 0.1f;
  if (is_fault("list") && is_automatic) params->out[0] += 0.5f;
  if (is_fault("isa") && strcmp(adamas_isa_in_use(), adamas_isa_name(adamas_isa_count() - 1)) == 0) params->out[0] += 0.1f;
  return status;
}

adamas_status adamas_selection(const adamas_plan* plan, int32_t q_head, int64_t* indices, int64_t size, int64_t* count) {
  adamas_status (*selection)(const adamas_plan*, int32_t, int64_t*, int64_t, int64_t*);
  next(&selection, "adamas_selection");
  adamas_status status = selection(plan, q_head, indices, size, count);
  if (status == ADAMAS_OK && spoilt_plan && is_fault("selection") && size > 1) indices[1] = indices[0];
  return status;
}

adamas_status adamas_block_bytes(const adamas_cache* cache, int64_t sequence, int32_t kv_head, int64_t block, void* bytes,
                                 size_t size, size_t* needed) {
  adamas_status (*block_bytes)(const adamas_cache*, int64_t, int32_t, int64_t, void*, size_t, size_t*);
  next(&block_bytes, "adamas_block_bytes");
  adamas_status status = block_bytes(cache, sequence, kv_head, block, bytes, size, needed);
  if (status == ADAMAS_OK && spoilt_cache && is_fault("codes") && size > 0) *(unsigned char*)bytes ^= 1;
  return status;
}
