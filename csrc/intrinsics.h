// <immintrin.h>, without warnings about that header.
//
// Intrinsics of AVX-512 that leave lanes undefined start from a variable that GCC before 13 reports as used
// uninitialized wherever they are inlined (GCC bug 105593). The warnings are switched off for the lines of that header
// alone; in our own lines they are on.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
