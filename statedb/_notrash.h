/* SPDX-License-Identifier: Apache-2.0 */
/* Included before the code that mypyc generates. mypyc 2.4 frees every native object through the
 * interpreter's trash can, those without a GC header (mypyc_attr(acyclic=True)) too; the trash can
 * links what it keeps through that header, and so writes over whatever lies before the object.
 * Without it a native object is freed at once. Containers between two native objects still use it,
 * so that only a chain of rows can nest deeply, and statedb takes those apart link by link. */
#include <Python.h>
#undef Py_TRASHCAN_BEGIN
#undef Py_TRASHCAN_END
#define Py_TRASHCAN_BEGIN(op, dealloc) do {
#define Py_TRASHCAN_END } while (0);
