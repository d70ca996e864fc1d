// The kernels for processors with AVX-512 with VNNI: products of bytes.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define KERNELS avx512_vnni_kernels
#define KERNELS_NAME "avx512_vnni"
#define HAS_VNNI
#include "vectors_avx512.h"
#include "target.inc"
#endif
