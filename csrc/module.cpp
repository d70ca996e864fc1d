// So that Python can import the library; what it computes is called through ctypes.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                 "_native",
                                 "The encoder's kernels, called through ctypes.",
                                 0,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&definition); }
