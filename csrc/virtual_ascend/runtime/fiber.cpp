#include "fiber.h"

#if defined(__x86_64__)
// Saves what the System V ABI makes the callee keep, exchanges stacks, restores.
asm(R"(
.text
.hidden kf_switch_stack
.globl kf_switch_stack
.type kf_switch_stack, @function
kf_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kf_switch_stack, .-kf_switch_stack
)");
#endif
