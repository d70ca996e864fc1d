// Which kernels this processor can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace berthead {

// The kernels that this processor can run, the best last.
std::vector<const Kernels*> UsableKernels();

// The kernels of this name that compute this precision. Null: this processor has none.
const Kernels* FindKernels(const char* name, int precision);

}  // namespace berthead
