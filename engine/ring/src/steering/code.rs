//! [`Program`] in the instructions of classic BPF.
//!
//! The machine has an accumulator A, an index X and sixteen words of memory; jumps go forward only.
//! Offset 0 is the first byte of the payload. A load beyond the end ends the program with 0, so the
//! length is asked first. The result is the number of a socket in the order of binding, and one that
//! does not exist stands for the kernel's own hash.

use libc::sock_filter;

use super::{
    CID_BYTES, CidNaming, FINISH, FINISH_ROUNDS, HASHED_BYTES, LATER_PACKETS, LONG_CID_AT,
    LONG_HEADER, LONG_LENGTH_AT, Program, Quarter, ROUND, SHORT_CID_AT, initial_state,
};

pub(super) fn assemble(program: &Program) -> Vec<sock_filter> {
    let mut code = Code(Vec::new());
    find_connection_id(&mut code, program.hashes_initial);
    match program.naming {
        CidNaming::Plain => code.push(LD_HALF_X, 0),
        CidNaming::Keyed => keyed(&mut code, &program.key),
    }
    code.push(MOD, u32::from(program.shards));
    code.push(RET_A, 0);
    code.0
}

/// Leaves in X where the connection id begins, or ends the program.
fn find_connection_id(code: &mut Code, hashes_initial: bool) {
    let bytes = |length: usize| u32::try_from(length).expect("a few bytes");
    let mut long = Code(Vec::new());
    if hashes_initial {
        long.push(JSET, LATER_PACKETS.into());
    }
    long.push(LD_LEN, 0);
    long.push(JGE, bytes(LONG_CID_AT + CID_BYTES));
    long.push(LD_BYTE, bytes(LONG_LENGTH_AT));
    long.push(JGE, bytes(CID_BYTES));
    long.push(LDX_IMM, bytes(LONG_CID_AT));
    // Over the refusal and the short header.
    long.push(JA, 2);
    long.fall_out();

    code.push(LD_LEN, 0);
    code.push(JGE, bytes(SHORT_CID_AT + CID_BYTES));
    let guard = code.0.len() - 1;
    code.push(LD_BYTE, 0);
    let to_short = long.0.len() + 1;
    code.push_jump(JSET, LONG_HEADER.into(), 0, to_short);
    code.0.append(&mut long.0);
    code.0[guard].jf = jump(code.0.len() - 1 - guard);
    code.push(RET_K, KERNEL_HASH);
    code.push(LDX_IMM, bytes(SHORT_CID_AT));
}

/// Leaves in A what [`Program::shard_of_cid`] takes the remainder of.
fn keyed(code: &mut Code, key: &[u8; 16]) {
    code.push(STX, CID_AT);
    code.push(LD_BYTE_X, u32::from(HASHED_BYTES));
    code.push(ST, LAST);
    for (cell, word) in (0..).zip(initial_state(key)) {
        code.push(LD_IMM, word);
        code.push(ST, cell);
    }
    for (first, top) in [(0, None), (4, Some(HASHED_BYTES))] {
        code.little_endian(first, top);
        code.push(ST, WORD);
        code.xor_cell(3, WORD);
        code.round();
        code.xor_cell(0, WORD);
    }
    code.push(LD_CELL, 2);
    code.push(XOR_IMM, FINISH);
    code.push(ST, 2);
    for _ in 0..FINISH_ROUNDS {
        code.round();
    }
    code.push(LD_CELL, 1);
    for cell in [3, LAST] {
        code.push(LDX_CELL, cell);
        code.push(XOR_X, 0);
    }
}

struct Code(Vec<sock_filter>);

impl Code {
    /// A conditional jump goes on here if its condition holds.
    fn push(&mut self, code: u16, k: u32) {
        self.0.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    fn push_jump(&mut self, code: u16, k: u32, if_true: usize, if_false: usize) {
        self.0.push(sock_filter { code, jt: jump(if_true), jf: jump(if_false), k });
    }

    /// Lets every condition that does not hold jump behind the last instruction.
    fn fall_out(&mut self) {
        let end = self.0.len();
        for (at, instruction) in self.0.iter_mut().enumerate() {
            if matches!(instruction.code, JGE | JSET) {
                instruction.jf = jump(end - 1 - at);
            }
        }
    }

    /// A: four bytes of the id from `first` on, or three and `top` as the highest.
    fn little_endian(&mut self, first: u32, top: Option<u8>) {
        let mut lower = 3;
        if let Some(top) = top {
            self.push(LD_IMM, top.into());
        } else {
            self.push(LDX_CELL, CID_AT);
            self.push(LD_BYTE_X, first + lower);
        }
        while lower > 0 {
            lower -= 1;
            self.push(LSH_IMM, 8);
            self.push(ST, SCRATCH);
            self.push(LDX_CELL, CID_AT);
            self.push(LD_BYTE_X, first + lower);
            self.push(LDX_CELL, SCRATCH);
            self.push(OR_X, 0);
        }
    }

    fn xor_cell(&mut self, cell: u32, other: u32) {
        self.push(LD_CELL, cell);
        self.push(LDX_CELL, other);
        self.push(XOR_X, 0);
        self.push(ST, cell);
    }

    fn round(&mut self) {
        for Quarter { sum, adds, adds_turns, sum_turns } in ROUND {
            let cell = |index: usize| u32::try_from(index).expect("four cells");
            let (sum, adds) = (cell(sum), cell(adds));
            self.push(LD_CELL, sum);
            self.push(LDX_CELL, adds);
            self.push(ADD_X, 0);
            self.push(ST, sum);
            self.rotate(adds, adds_turns);
            self.push(LDX_CELL, sum);
            self.push(XOR_X, 0);
            self.push(ST, adds);
            if sum_turns > 0 {
                self.rotate(sum, sum_turns);
                self.push(ST, sum);
            }
        }
    }

    /// A: a cell, rotated to the left.
    fn rotate(&mut self, cell: u32, turns: u32) {
        self.push(LD_CELL, cell);
        self.push(RSH_IMM, 32 - turns);
        self.push(TAX, 0);
        self.push(LD_CELL, cell);
        self.push(LSH_IMM, turns);
        self.push(OR_X, 0);
    }
}

fn jump(distance: usize) -> u8 {
    u8::try_from(distance).expect("a short jump")
}

/// No group has as many sockets.
const KERNEL_HASH: u32 = u32::MAX;

// Cells 0 to 3 of the memory are the state of the hash.
const SCRATCH: u32 = 4;
const CID_AT: u32 = 5;
const WORD: u32 = 6;
const LAST: u32 = 7;

// Instructions, as in linux/bpf_common.h: class, width or operation, mode or source.
pub(super) const LD_IMM: u16 = 0x00;
pub(super) const LD_BYTE: u16 = 0x30;
pub(super) const LD_HALF_X: u16 = 0x48;
pub(super) const LD_BYTE_X: u16 = 0x50;
pub(super) const LD_CELL: u16 = 0x60;
pub(super) const LD_LEN: u16 = 0x80;
pub(super) const LDX_IMM: u16 = 0x01;
pub(super) const LDX_CELL: u16 = 0x61;
pub(super) const ST: u16 = 0x02;
pub(super) const STX: u16 = 0x03;
pub(super) const ADD_X: u16 = 0x0c;
pub(super) const OR_X: u16 = 0x4c;
pub(super) const LSH_IMM: u16 = 0x64;
pub(super) const RSH_IMM: u16 = 0x74;
pub(super) const MOD: u16 = 0x94;
pub(super) const XOR_IMM: u16 = 0xa4;
pub(super) const XOR_X: u16 = 0xac;
pub(super) const JA: u16 = 0x05;
pub(super) const JGE: u16 = 0x35;
pub(super) const JSET: u16 = 0x45;
pub(super) const RET_K: u16 = 0x06;
pub(super) const RET_A: u16 = 0x16;
pub(super) const TAX: u16 = 0x07;
