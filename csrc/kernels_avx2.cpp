// The kernels for processors with avx2, fma, f16c.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define KERNELS avx2_kernels
#define KERNELS_NAME "avx2"
#include <immintrin.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine.h"
namespace {
#include "vectors_avx2.h"
}
#include "kernels.inc"
#include "training.inc"
#include "adamw.inc"
#include "table.inc"
#endif
