//go:build !purego

#include "textflag.h"

// The stretch with SHA instructions, for one key or for two in turns. See
// laneWords in stretch.go for the words.
//
// In both functions: AX constants, BX start, CX count, DX end, SI and DI words of
// the lanes; X0 what the next four rounds add, X13 count, X14 scratch, X15 zero. A
// lane has its state in S0 (A B E F, from the top) and S1 (C D G H), and four
// quarters of the message schedule, M0 to M3. Between rounds of the stretch, M0
// and M1 hold last. What is left of initial comes as a memory operand or as X0.

// ROUNDS does four rounds.
#define ROUNDS(S0, S1) \
	SHA256RNDS2 X0, S0, S1; \
	PSHUFD $0x0E, X0, X0; \
	SHA256RNDS2 X0, S1, S0

// KNOWN does four rounds with words t to t+3 of the lane, which hold K + W.
#define KNOWN(t, WORDS, S0, S1) \
	VMOVDQU (4*(t))(WORDS), X0; \
	ROUNDS(S0, S1)

// USE does rounds t to t+3 with the message words in M.
#define USE(t, M, S0, S1) \
	VPADDD (4*(t))(AX), M, X0; \
	ROUNDS(S0, S1)

// STEP replaces the oldest message words, M0, by the next, and does rounds t to
// t+3 with them.
#define STEP(t, S0, S1, M0, M1, M2, M3) \
	SHA256MSG1 M1, M0; \
	VPALIGNR $4, M2, M3, X14; \
	VPADDD X14, M0, M0; \
	SHA256MSG2 M3, M0; \
	USE(t, M0, S0, S1)

// The parts of a round of the stretch, which BLOCKS puts together. All take a
// whole lane.

#define LOAD(WORDS, S0, S1, M0, M1, M2, M3) \
	VMOVDQU (WORDS), M0; \
	VMOVDQU 16(WORDS), M1

#define STORE(WORDS, S0, S1, M0, M1, M2, M3) \
	VMOVDQU M0, (WORDS); \
	VMOVDQU M1, 16(WORDS)

#define FIRST0(WORDS, S0, S1, M0, M1, M2, M3) \
	VMOVDQU (BX), S0; \
	VMOVDQU 16(BX), S1; \
	USE(0, M0, S0, S1)

#define FIRST4(WORDS, S0, S1, M0, M1, M2, M3) \
	USE(4, M1, S0, S1)

#define FIRST8(WORDS, S0, S1, M0, M1, M2, M3) \
	KNOWN(8, WORDS, S0, S1)

#define FIRST12(WORDS, S0, S1, M0, M1, M2, M3) \
	KNOWN(12, WORDS, S0, S1)

#define FIRST16(WORDS, S0, S1, M0, M1, M2, M3) \
	SHA256MSG1 M1, M0; \
	VPADDD 64(WORDS), M0, M0; \
	SHA256MSG2 X15, M0; \
	USE(16, M0, S0, S1)

#define FIRST20(WORDS, S0, S1, M0, M1, M2, M3) \
	SHA256MSG1 X15, M1; \
	VPADDD 80(WORDS), M1, M1; \
	VPALIGNR $4, X15, M0, X14; \
	VPADDD X14, M1, M1; \
	SHA256MSG2 M0, M1; \
	USE(20, M1, S0, S1)

#define FIRST24(WORDS, S0, S1, M0, M1, M2, M3) \
	VPALIGNR $4, M0, M1, M2; \
	VPADDD 96(WORDS), M2, M2; \
	SHA256MSG2 M1, M2; \
	USE(24, M2, S0, S1)

#define FIRST28(WORDS, S0, S1, M0, M1, M2, M3) \
	VPXOR M3, M3, M3; \
	SHA256MSG1 M0, M3; \
	VPADDD 112(WORDS), M3, M3; \
	VPALIGNR $4, M1, M2, X14; \
	VPADDD X14, M3, M3; \
	SHA256MSG2 M2, M3; \
	USE(28, M3, S0, S1)

#define STEP32(WORDS, S0, S1, M0, M1, M2, M3) STEP(32, S0, S1, M0, M1, M2, M3)
#define STEP36(WORDS, S0, S1, M0, M1, M2, M3) STEP(36, S0, S1, M1, M2, M3, M0)
#define STEP40(WORDS, S0, S1, M0, M1, M2, M3) STEP(40, S0, S1, M2, M3, M0, M1)
#define STEP44(WORDS, S0, S1, M0, M1, M2, M3) STEP(44, S0, S1, M3, M0, M1, M2)
#define STEP48(WORDS, S0, S1, M0, M1, M2, M3) STEP(48, S0, S1, M0, M1, M2, M3)
#define STEP52(WORDS, S0, S1, M0, M1, M2, M3) STEP(52, S0, S1, M1, M2, M3, M0)
#define STEP56(WORDS, S0, S1, M0, M1, M2, M3) STEP(56, S0, S1, M2, M3, M0, M1)
#define STEP60(WORDS, S0, S1, M0, M1, M2, M3) STEP(60, S0, S1, M3, M0, M1, M2)

// FIRSTEND keeps the hash of the first block.
#define FIRSTEND(WORDS, S0, S1, M0, M1, M2, M3) \
	VPADDD (BX), S0, S0; \
	VPADDD 16(BX), S1, S1; \
	VMOVDQU S0, 256(WORDS); \
	VMOVDQU S1, 272(WORDS)

#define SECOND0(WORDS, S0, S1, M0, M1, M2, M3) \
	KNOWN(32, WORDS, S0, S1)

#define SECOND4(WORDS, S0, S1, M0, M1, M2, M3) \
	VPADDD 144(WORDS), X13, X0; \
	ROUNDS(S0, S1)

#define SECOND8(WORDS, S0, S1, M0, M1, M2, M3) \
	KNOWN(40, WORDS, S0, S1)

#define SECOND12(WORDS, S0, S1, M0, M1, M2, M3) \
	KNOWN(44, WORDS, S0, S1)

#define SECOND16(WORDS, S0, S1, M0, M1, M2, M3) \
	VPXOR M0, M0, M0; \
	SHA256MSG1 X13, M0; \
	VPADDD 192(WORDS), M0, M0; \
	USE(16, M0, S0, S1)

#define SECOND20(WORDS, S0, S1, M0, M1, M2, M3) \
	VPADDD 208(WORDS), X13, M1; \
	SHA256MSG2 M0, M1; \
	USE(20, M1, S0, S1)

#define SECOND24(WORDS, S0, S1, M0, M1, M2, M3) \
	VPALIGNR $4, M0, M1, M2; \
	SHA256MSG2 M1, M2; \
	USE(24, M2, S0, S1)

#define SECOND28(WORDS, S0, S1, M0, M1, M2, M3) \
	VPALIGNR $4, M1, M2, M3; \
	VPADDD 240(WORDS), M3, M3; \
	SHA256MSG2 M2, M3; \
	USE(28, M3, S0, S1)

// SECONDEND makes the hash of both blocks the next last.
#define SECONDEND(WORDS, S0, S1, M0, M1, M2, M3) \
	VPADDD 256(WORDS), S0, S0; \
	VPADDD 272(WORDS), S1, S1; \
	VSHUFPS $0xBB, S1, S0, M0; \
	VSHUFPS $0x11, S1, S0, M1

// ONE and TWO do a part for one lane, and for two in turns.
#define ONE(PART) PART(SI, X1, X2, X3, X4, X5, X6)

#define TWO(PART) \
	PART(SI, X1, X2, X3, X4, X5, X6); \
	PART(DI, X7, X8, X9, X10, X11, X12)

// BLOCKS does a round of the stretch.
#define BLOCKS(LANES) \
	LANES(FIRST0); \
	LANES(FIRST4); \
	LANES(FIRST8); \
	LANES(FIRST12); \
	LANES(FIRST16); \
	LANES(FIRST20); \
	LANES(FIRST24); \
	LANES(FIRST28); \
	LANES(STEP32); \
	LANES(STEP36); \
	LANES(STEP40); \
	LANES(STEP44); \
	LANES(STEP48); \
	LANES(STEP52); \
	LANES(STEP56); \
	LANES(STEP60); \
	LANES(FIRSTEND); \
	LANES(SECOND0); \
	LANES(SECOND4); \
	LANES(SECOND8); \
	LANES(SECOND12); \
	LANES(SECOND16); \
	LANES(SECOND20); \
	LANES(SECOND24); \
	LANES(SECOND28); \
	LANES(STEP32); \
	LANES(STEP36); \
	LANES(STEP40); \
	LANES(STEP44); \
	LANES(STEP48); \
	LANES(STEP52); \
	LANES(STEP56); \
	LANES(STEP60); \
	LANES(SECONDEND)

#define BEGIN \
	VZEROUPPER; \
	MOVQ words+0(FP), SI; \
	MOVQ first+8(FP), CX; \
	MOVQ n+16(FP), DX; \
	ADDQ CX, DX; \
	LEAQ ·sha256K(SB), AX; \
	LEAQ ·sha256Start(SB), BX; \
	VPXOR X15, X15, X15

// COUNT loads the count as a message word.
#define COUNT \
	MOVL CX, R8; \
	BSWAPL R8; \
	VMOVD R8, X13

// func stretchSHA1(words *uint32, first, n int)
TEXT ·stretchSHA1(SB), NOSPLIT, $0-24
	BEGIN
	ONE(LOAD)

round:
	COUNT
	BLOCKS(ONE)
	INCQ CX
	CMPQ CX, DX
	JB   round
	ONE(STORE)
	VZEROALL
	RET

// func stretchSHA2(words *uint32, first, n int)
TEXT ·stretchSHA2(SB), NOSPLIT, $0-24
	BEGIN
	LEAQ 288(SI), DI
	TWO(LOAD)

round:
	COUNT
	BLOCKS(TWO)
	INCQ CX
	CMPQ CX, DX
	JB   round
	TWO(STORE)
	VZEROALL
	RET

// func hasSHAInstructions() bool
TEXT ·hasSHAInstructions(SB), NOSPLIT, $0-1
	MOVL $0, AX
	XORL CX, CX
	CPUID
	CMPL AX, $7
	JB   no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $29, BX
	ANDL $1, BX
	MOVB BX, ret+0(FP)
	RET

no:
	MOVB $0, ret+0(FP)
	RET
