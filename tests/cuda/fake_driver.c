// A CUDA driver that records what it is asked to do, so that launches can be checked without a GPU.
// It validates what the real one does: alignment of tensor maps, a current context, parameter addresses.
#include <stdint.h>
#include <string.h>

#define INVALID_VALUE 1
#define INVALID_CONTEXT 201
#define MAX_PARAMETERS 16

struct tensor_map_call {
  int32_t dtype;
  uint32_t rank;
  uint64_t address;
  uint64_t dims[5];
  uint64_t strides[5];
  uint32_t box[5];
  uint32_t element_strides[5];
  int32_t modes[4];
};

struct launch_call {
  uint64_t function;
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared_bytes;
  uint64_t stream;
  uint64_t context;
  uint64_t values[MAX_PARAMETERS];  // first eight bytes behind every parameter's address
};

struct tensor_map_call last_map;
struct launch_call last_launch;
int32_t launches, encodings, loads, dynamic_shared, parameter_count, next_error;
char last_image[64], last_entry[64];
static uint64_t stack[8];
static int depth;

static int result(void) {
  int error = next_error;
  next_error = 0;
  return error;
}

int cuInit(unsigned flags) { return flags == 0 ? 0 : INVALID_VALUE; }

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal + 100;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(uintptr_t)(0xC0000 + device);
  return 0;
}

int cuCtxPushCurrent_v2(void* context) {
  if (depth == 8) return INVALID_VALUE;
  stack[depth++] = (uint64_t)(uintptr_t)context;
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  if (depth == 0) return INVALID_CONTEXT;
  *context = (void*)(uintptr_t)stack[--depth];
  return 0;
}

int current_depth(void) { return depth; }

int cuModuleLoadData(void** module, const char* image) {
  if (depth == 0) return INVALID_CONTEXT;
  strncpy(last_image, image, sizeof last_image - 1);
  ++loads;
  *module = (void*)(uintptr_t)0xD0000;
  return result();
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  if ((uintptr_t)module != 0xD0000) return INVALID_VALUE;
  strncpy(last_entry, name, sizeof last_entry - 1);
  *function = (void*)(uintptr_t)(0xF0000 + loads);
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if ((uintptr_t)function != (uintptr_t)(0xF0000 + loads) || attribute != 8) return INVALID_VALUE;
  dynamic_shared = value;
  return 0;
}

int cuTensorMapEncodeTiled(void* map, int dtype, uint32_t rank, void* address, const uint64_t* dims,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, int interleave,
                           int swizzle, int l2, int oob) {
  if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || rank < 1 || rank > 5) return INVALID_VALUE;
  memset(&last_map, 0, sizeof last_map);
  last_map.dtype = dtype;
  last_map.rank = rank;
  last_map.address = (uint64_t)(uintptr_t)address;
  memcpy(last_map.dims, dims, rank * sizeof *dims);
  memcpy(last_map.strides, strides, (rank - 1) * sizeof *strides);
  memcpy(last_map.box, box, rank * sizeof *box);
  memcpy(last_map.element_strides, element_strides, rank * sizeof *element_strides);
  int modes[4] = {interleave, swizzle, l2, oob};
  memcpy(last_map.modes, modes, sizeof modes);
  for (uint32_t i = 0; i < rank; ++i)
    if (dims[i] == 0) return INVALID_VALUE;
  memset(map, 0xA0 + encodings, 128);
  ++encodings;
  return result();
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  if (depth == 0) return INVALID_CONTEXT;
  if (extra || !gx || !gy || !gz) return INVALID_VALUE;
  struct launch_call call = {(uint64_t)(uintptr_t)function, {gx, gy, gz}, {bx, by, bz}, shared_bytes,
                             (uint64_t)(uintptr_t)stream,   stack[depth - 1], {0}};
  for (int i = 0; i < parameter_count; ++i) memcpy(&call.values[i], parameters[i], 8);
  last_launch = call;
  ++launches;
  return result();
}

int cuGetErrorName(int error, const char** text) {
  *text = error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == INVALID_CONTEXT ? "invalid device context" : "invalid argument";
  return 0;
}
