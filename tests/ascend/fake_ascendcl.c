// Stands in for CANN's libascendcl: records what it is asked to do.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char written[4096];

const char *fake_log(void) { return written; }
void fake_reset(void) { written[0] = 0; }

static void note(const char *text) { strncat(written, text, sizeof(written) - strlen(written) - 1); }

int32_t aclrtBinaryLoadFromData(const void *data, size_t size, const void *options, void **binary) {
  if (size == 0) return 7;
  char line[256];
  snprintf(line, sizeof(line), "load %.*s%s\n", (int)size, (const char *)data, options ? " with options" : "");
  note(line);
  *binary = (void *)0x1000;
  return 0;
}

int32_t aclrtBinaryGetFunction(void *binary, const char *name, void **function) {
  char line[256];
  snprintf(line, sizeof(line), "function %s of %p\n", name, binary);
  note(line);
  *function = (void *)0x123456789abc;
  return 0;
}

struct attribute {
  int32_t id;
  uint32_t value[4];
};
struct configuration {
  struct attribute *attributes;
  size_t count;
};

int32_t aclrtLaunchKernelWithHostArgs(void *function, uint32_t blocks, void *stream, struct configuration *config,
                                      void *arguments, size_t size, void *holders, size_t holder_count) {
  char line[512];
  int at = snprintf(line, sizeof(line), "launch %p blocks %u stream %p", function, blocks, stream);
  if (config) at += snprintf(line + at, sizeof(line) - at, " attribute %d = %u", config->attributes->id, config->attributes->value[0]);
  if (holders || holder_count) at += snprintf(line + at, sizeof(line) - at, " placeholders");
  at += snprintf(line + at, sizeof(line) - at, " arguments");
  for (size_t i = 0; i < size; i++) at += snprintf(line + at, sizeof(line) - at, " %02x", ((uint8_t *)arguments)[i]);
  note(line);
  note("\n");
  return 0;
}

const char *aclGetRecentErrMsg(void) { return "the fake refuses empty binaries"; }
