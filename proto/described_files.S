    .section .rodata
    .balign 16
    .global creto_described_files_begin
    .global creto_described_files_end
creto_described_files_begin:
    .incbin CRETO_DESCRIBED_FILES
creto_described_files_end:
    .section .note.GNU-stack,"",%progbits
