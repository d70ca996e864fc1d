// The kernels for processors with AVX-512 (F, BW, VL and DQ).
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define KERNELS avx512_kernels
#define KERNELS_NAME "avx512"
#include "vectors_avx512.h"
#include "target.inc"
#endif
