// The kernels for processors with AVX2 and FMA.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define KERNELS avx2_kernels
#define KERNELS_NAME "avx2"
#include "vectors_avx2.h"
#include "target.inc"
#endif
