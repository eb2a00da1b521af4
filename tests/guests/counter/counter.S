# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The counter guest: an operating system of one page, whose serial port shows whether it is the same guest.
#
# Built by tests/support/counter.py:  as --32, ld -m elf_i386 -Ttext 0x7c00 --oformat binary
#
#   boot block=16         once, when the block has been filled: a second one is a restart, never a continuation
#   counter=42            about 8 a second; every line after "boot" carries the counter, and each is the last one + 1
#   checksum=1a2b3c4d counter=43        answer to "c", computed over the block in small steps, so that counting goes on
#   dirty=on counter=44   answer to "d", dirty=off to "s", button=off to "i"
# "p" powers the machine off (ACPI), and so does its power button until "i" has it ignored; "r" resets it. Other bytes
# are ignored.
#
# Memory: code at 0x7c00, output ring at 0x10000, the block from 1 MiB, the dirty region right behind the block.
# Lines go into a ring and from there to the port as it takes them. Without room in the ring no line is made and the
# counter stays: a reader that does not read delays lines, but it neither stops the guest nor makes a gap.

        .set    SECTORS, 7              # sectors (512 bytes) behind the boot sector
        .set    RING, 0x10000
        .set    RING_SIZE, 0x4000       # bytes, a power of two
        .set    RING_ROOM, 0x400        # bytes that must be free before anything is reported
        .set    COM1, 0x3f8
        .set    BLOCK, 0x100000         # the block's address
        .set    PM1_STS, 0x600          # PM1a, where SeaBIOS puts it on pc and q35
        .set    PM1_EN, 0x602
        .set    PM1_CNT, 0x604
        .set    PWRBTN, 0x100
        .set    PIT_DIVISOR, 11932      # 1193182 Hz / 11932 = 100 ticks a second
        .set    DIRTY_STEP, 256         # pages dirtied between two looks at the clock

        .text
        .code16
        .globl  _start
_start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        ljmp    $0, $load
load:
        sti
        movw    $3, %bp                 # a real floppy needs its retries, so do some BIOSes
1:      movw    $(0x0200 + SECTORS), %ax
        movw    $stage2, %bx
        movw    $2, %cx                 # cylinder 0, sector 2 (counted from 1)
        movb    $0, %dh                 # head 0; dl is still the boot drive
        int     $0x13
        jnc     2f
        xorw    %ax, %ax
        int     $0x13                   # reset the drive
        decw    %bp
        jnz     1b
        int     $0x18                   # nothing to boot
2:      cli
        inb     $0x92, %al              # A20 on
        orb     $2, %al
        andb    $0xfe, %al              # bit 0 would reset the machine
        outb    %al, $0x92
        lgdt    gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmp    $8, $stage2

        .align  8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      # code, 0 to 4 GiB
        .quad   0x00cf92000000ffff      # data, 0 to 4 GiB
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

# Patched by the Python side, which looks for the signature at this offset.
        .org    0x180
        .ascii  "VMOPSCTR"
block_mib:      .long 1                 # MiB
dirty_mib:      .long 0                 # MiB
seed:           .long 0x2545f491        # of the block's pattern, not 0
line_ticks:     .long 12                # ticks (10 ms) from line to line
dirty_rate:     .long 0                 # pages (4 KiB) dirtied in a tick; 0: as many as the CPU can

        .org    0x1fe
        .word   0xaa55

        .code32
stage2:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7c00, %esp

        # COM1: 115200 8N1, FIFOs on, no interrupts (it is polled at every tick)
        movw    $(COM1 + 1), %dx
        movb    $0, %al
        outb    %al, %dx
        movw    $(COM1 + 3), %dx
        movb    $0x80, %al
        outb    %al, %dx
        movw    $COM1, %dx
        movb    $1, %al
        outb    %al, %dx
        movw    $(COM1 + 1), %dx
        movb    $0, %al
        outb    %al, %dx
        movw    $(COM1 + 3), %dx
        movb    $3, %al
        outb    %al, %dx
        movw    $(COM1 + 2), %dx
        movb    $0xc7, %al
        outb    %al, %dx
        movw    $(COM1 + 4), %dx
        movb    $3, %al
        outb    %al, %dx

        # Both PICs: vectors from 0x20 and 0x28, all masked but the timer
        movb    $0x11, %al
        outb    %al, $0x20
        outb    %al, $0xa0
        movb    $0x20, %al
        outb    %al, $0x21
        movb    $0x28, %al
        outb    %al, $0xa1
        movb    $4, %al
        outb    %al, $0x21
        movb    $2, %al
        outb    %al, $0xa1
        movb    $1, %al
        outb    %al, $0x21
        outb    %al, $0xa1
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1

        movb    $0x34, %al              # PIT channel 0, mode 2
        outb    %al, $0x43
        movb    $(PIT_DIVISOR & 0xff), %al
        outb    %al, $0x40
        movb    $(PIT_DIVISOR >> 8), %al
        outb    %al, $0x40
        lidt    idt_pointer

        movw    $PM1_EN, %dx            # the power button sets its bit in the status only when that is asked for
        movw    $PWRBTN, %ax
        outw    %ax, %dx

        # Fill the block with xorshift32: no two pages alike (its period is 16 GiB), nothing to compress
        movl    $BLOCK, %edi
        movl    block_mib, %ecx
        shll    $18, %ecx               # MiB to 32-bit words
        movl    seed, %eax
        jecxz   filled
fill:   movl    %eax, %edx
        shll    $13, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shrl    $17, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shll    $5, %edx
        xorl    %edx, %eax
        movl    %eax, (%edi)
        addl    $4, %edi
        decl    %ecx
        jnz     fill
filled:
        movl    %edi, dirty_start
        movl    %edi, dirty_at
        movl    %eax, dirty_value
        movl    dirty_mib, %eax
        shll    $20, %eax
        addl    %edi, %eax
        movl    %eax, dirty_end

        movl    $text_boot, %esi
        call    puts
        movl    block_mib, %eax
        call    put_decimal
        movb    $'\n', %al
        call    putc
        sti

main:
        call    button
        call    flush
        movl    ring_in, %eax
        subl    ring_out, %eax
        cmpl    $(RING_SIZE - RING_ROOM), %eax
        ja      1f
        call    command
        call    tick_line
        call    checksum_step
1:      call    dirty_step
        cmpl    $0, busy
        movl    $0, busy                # leaves the flags as they are
        jne     main
        hlt                             # a tick that came just before costs 10 ms, no more
        jmp     main

# The power button; all ones where nothing is at the port (isapc, microvm).
button:
        movw    $PM1_STS, %dx
        inw     %dx, %ax
        cmpw    $0xffff, %ax
        je      9f
        testw   $PWRBTN, %ax
        jz      9f
        outw    %ax, %dx                # what was seen is cleared
        cmpl    $0, button_off
        je      power_off
9:      ret

power_off:
        movw    $PM1_CNT, %dx           # S5
        movw    $0x2000, %ax
        outw    %ax, %dx
        ret

# One line a while.
tick_line:
        movl    ticks, %eax
        movl    %eax, %edx
        subl    line_at, %edx
        cmpl    line_ticks, %edx
        jb      1f
        movl    %eax, line_at           # lines missed are not made up for
        call    put_counter
1:      ret

# Reads one byte from COM1, if there is one, and does what it says.
command:
        movw    $(COM1 + 5), %dx
        inb     %dx, %al
        testb   $1, %al
        jz      9f
        movw    $COM1, %dx
        inb     %dx, %al
        cmpb    $'c', %al
        jne     1f
        cmpl    $0, checksum_on
        jne     9f                      # the one under way will do
        movl    $BLOCK, checksum_at
        movl    block_mib, %eax
        movl    %eax, checksum_left
        movl    $0x811c9dc5, checksum
        movl    $1, checksum_on
        ret
1:      cmpb    $'d', %al
        jne     2f
        movl    $1, dirty_on
        movl    $text_dirty_on, %esi
        call    puts
        jmp     put_counter
2:      cmpb    $'s', %al
        jne     3f
        movl    $0, dirty_on
        movl    $text_dirty_off, %esi
        call    puts
        jmp     put_counter
3:      cmpb    $'p', %al
        je      power_off
        cmpb    $'i', %al
        jne     4f
        movl    $1, button_off
        movl    $text_button_off, %esi
        call    puts
        jmp     put_counter
4:      cmpb    $'r', %al
        jne     9f
        movb    $0xfe, %al
        outb    %al, $0x64
9:      ret

# The next MiB of the checksum: for each 32-bit word, sum = sum * 0x01000193 + word.
checksum_step:
        cmpl    $0, checksum_on
        je      9f
        movl    $1, busy
        cmpl    $0, checksum_left
        je      2f
        movl    checksum_at, %esi
        movl    checksum, %eax
        movl    $0x40000, %ecx          # words in a MiB
1:      imull   $0x01000193, %eax, %eax
        addl    (%esi), %eax
        imull   $0x01000193, %eax, %eax
        addl    4(%esi), %eax
        imull   $0x01000193, %eax, %eax
        addl    8(%esi), %eax
        imull   $0x01000193, %eax, %eax
        addl    12(%esi), %eax
        addl    $16, %esi
        subl    $4, %ecx
        jnz     1b
        movl    %esi, checksum_at
        movl    %eax, checksum
        decl    checksum_left
        ret
2:      movl    $0, checksum_on
        movl    $text_checksum, %esi
        call    puts
        movl    checksum, %eax
        call    put_hex
        movb    $' ', %al
        call    putc
        jmp     put_counter
9:      ret

# Some pages more of the dirty region, one word in each.
dirty_step:
        cmpl    $0, dirty_on
        je      9f
        movl    $DIRTY_STEP, %ecx
        cmpl    $0, dirty_rate
        je      1f
        cmpl    dirty_budget, %ecx
        jbe     1f
        movl    dirty_budget, %ecx
1:      jecxz   9f
        subl    %ecx, dirty_budget      # one instruction: the timer adds to it
        movl    dirty_at, %edi
        cmpl    dirty_end, %edi
        jae     4f
        movl    $1, busy
        movl    dirty_value, %eax
2:      movl    %eax, %edx
        shll    $13, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shrl    $17, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        shll    $5, %edx
        xorl    %edx, %eax
        movl    %eax, %edx
        andl    $0xffc, %edx
        movl    %eax, (%edi, %edx)
        addl    $4096, %edi
        cmpl    dirty_end, %edi
        jb      3f
        movl    dirty_start, %edi
3:      decl    %ecx
        jnz     2b
        movl    %eax, dirty_value
        movl    %edi, dirty_at
        ret
4:      movl    $0, dirty_budget        # no dirty region
9:      ret

# Output: puts (esi: text, 0 ends it), putc (al), put_hex, put_decimal (eax), put_counter (the end of every line).
put_counter:
        movl    $text_counter, %esi
        call    puts
        incl    counter
        movl    counter, %eax
        call    put_decimal
        movb    $'\n', %al
putc:
        movl    ring_in, %ebx
        andl    $(RING_SIZE - 1), %ebx
        movb    %al, RING(%ebx)
        incl    ring_in
        ret
puts:
        lodsb
        testb   %al, %al
        jz      9f
        call    putc
        jmp     puts
put_decimal:
        movl    $10, %ecx
        xorl    %edx, %edx
        divl    %ecx
        pushl   %edx
        testl   %eax, %eax
        jz      1f
        call    put_decimal
1:      popl    %eax
        addb    $'0', %al
        jmp     putc
put_hex:
        movl    $8, %ecx
1:      roll    $4, %eax
        pushl   %eax
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     2f
        addb    $('a' - '9' - 1), %al
2:      call    putc
        popl    %eax
        decl    %ecx
        jnz     1b
9:      ret

# Hands the port what it takes now.
flush:
        movl    ring_out, %ebx
        cmpl    ring_in, %ebx
        je      9f
        movw    $(COM1 + 5), %dx
        inb     %dx, %al
        testb   $0x20, %al              # transmitter empty
        jz      9f
        andl    $(RING_SIZE - 1), %ebx
        movb    RING(%ebx), %al
        movw    $COM1, %dx
        outb    %al, %dx
        incl    ring_out
        jmp     flush
9:      ret

timer:
        pushl   %eax
        incl    ticks
        movl    dirty_rate, %eax
        cmpl    $0, dirty_on
        je      1f
        movl    %eax, dirty_budget      # what a busy tick left over is not made up for
1:      movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        iret

text_boot:      .asciz "boot block="
text_counter:   .asciz "counter="
text_checksum:  .asciz "checksum="
text_dirty_on:  .asciz "dirty=on "
text_dirty_off: .asciz "dirty=off "
text_button_off: .asciz "button=off "

        .align  8
idt:    .fill   32, 8, 0                # an exception has no gate: triple fault, reset, a second "boot"
        .word   timer, 8, 0x8e00, 0     # vector 0x20; the code is below 64 KiB
idt_pointer:
        .word   . - idt - 1
        .long   idt

        .align  4
counter:        .long 0
ticks:          .long 0                 # since the start, 10 ms each
line_at:        .long 0                 # ticks at the last line
busy:           .long 0                 # something to do before the next tick
ring_in:        .long 0
ring_out:       .long 0
checksum_on:    .long 0
checksum_at:    .long 0
checksum_left:  .long 0                 # MiB
checksum:       .long 0
button_off:     .long 0
dirty_on:       .long 0
dirty_start:    .long 0
dirty_end:      .long 0
dirty_at:       .long 0
dirty_value:    .long 0
dirty_budget:   .long 0                 # pages left in this tick

        .org    (SECTORS + 1) * 512
