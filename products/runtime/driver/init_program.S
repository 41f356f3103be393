    .section .rodata
    .balign 16
    .global creto_init_program_begin
    .global creto_init_program_end
creto_init_program_begin:
    .incbin CRETO_INIT_PROGRAM
creto_init_program_end:
    .section .note.GNU-stack,"",%progbits
