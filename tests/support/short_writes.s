# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# A preloaded library that cuts writes short, as a kernel may: of every eighth writev() and pwritev() of more than one
# piece only the first half of the pieces is written. In assembler, since the tests need binutils anyway, and no
# compiler.

        .text

        .globl  pwritev64
        .type   pwritev64, @function
pwritev64:                              # (fd %edi, pieces %rsi, their number %edx, offset %rcx)
        mov     %rcx, %r10
        xor     %r8d, %r8d
        mov     $296, %eax              # pwritev
        jmp     write
        .size   pwritev64, . - pwritev64

        .globl  writev
        .type   writev, @function
writev:                                 # (fd %edi, pieces %rsi, their number %edx)
        mov     $20, %eax               # writev
        .size   writev, . - writev

write:
        cmp     $2, %edx
        jl      1f
        mov     $1, %r9d
        lock xadd %r9d, calls(%rip)
        and     $7, %r9d
        cmp     $3, %r9d
        jne     1f
        shr     $1, %edx
1:      movslq  %edx, %rdx
        syscall
        cmp     $-4095, %rax
        jae     2f
        ret
2:      neg     %eax
        push    %rax
        call    __errno_location@PLT
        pop     %rdx
        mov     %edx, (%rax)
        mov     $-1, %rax
        ret

        .bss
        .balign 4
calls:  .skip   4

        .section .note.GNU-stack, "", @progbits
