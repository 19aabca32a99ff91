use libc::sock_filter;

use super::code::*;
use super::*;

/// Runs a program as the kernel does.
fn interpret(program: &[sock_filter], datagram: &[u8]) -> u32 {
    let (mut a, mut x, mut cells) = (0u32, 0u32, [0u32; 16]);
    let byte = |at: u32| datagram.get(usize::try_from(at).unwrap()).map(|byte| u32::from(*byte));
    let mut next = 0;
    loop {
        let sock_filter { code, jt, jf, k } = program[next];
        next += 1;
        let cell = k as usize;
        // A load that fails ends the program.
        let mut load = |value: Option<u32>| {
            a = value.unwrap_or(0);
            value.is_none()
        };
        let failed = match code {
            LD_BYTE => load(byte(k)),
            LD_BYTE_X => load(byte(x + k)),
            LD_HALF_X => load(byte(x + k).zip(byte(x + k + 1)).map(|(high, low)| high << 8 | low)),
            _ => false,
        };
        match code {
            _ if failed => return 0,
            LD_BYTE | LD_BYTE_X | LD_HALF_X => {}
            LD_IMM => a = k,
            LD_CELL => a = cells[cell],
            LD_LEN => a = u32::try_from(datagram.len()).unwrap(),
            LDX_IMM => x = k,
            LDX_CELL => x = cells[cell],
            ST => cells[cell] = a,
            STX => cells[cell] = x,
            ADD_X => a = a.wrapping_add(x),
            OR_X => a |= x,
            XOR_X => a ^= x,
            XOR_IMM => a ^= k,
            LSH_IMM => a <<= k,
            RSH_IMM => a >>= k,
            MOD => a %= k,
            TAX => x = a,
            JA => next += cell,
            JGE => next += usize::from(if a >= k { jt } else { jf }),
            JSET => next += usize::from(if a & k != 0 { jt } else { jf }),
            RET_K => return k,
            RET_A => return a,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Pseudo-random, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.next() % bound).unwrap()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_le_bytes()[0])
    }

    /// Of every length around the limits, with a connection id length around the limit.
    fn datagram(&mut self) -> Vec<u8> {
        let mut datagram = self.bytes::<40>();
        if self.next().is_multiple_of(2) {
            datagram[5] = u8::try_from(self.below(22)).unwrap();
        }
        let length = self.below(41);
        datagram[..length].to_vec()
    }
}

fn programs(shards: u16, key: &[u8; 16]) -> [Program; 3] {
    let keyed = Program::new(CidNaming::Keyed, shards, key);
    [Program::new(CidNaming::Plain, shards, key), keyed.clone(), keyed.hash_initial()]
}

#[test]
fn the_program_and_the_function_agree() {
    let mut random = Random(0x5eed);
    for shards in [1, 2, 3, 4, 7, 8, 48, 255, 256] {
        let key = random.bytes();
        for program in programs(shards, &key) {
            let code = program.code();
            let (mut steered, mut left) = (0, 0);
            for _ in 0..2000 {
                let datagram = random.datagram();
                let expected = program.shard(&datagram);
                let answer = interpret(&code, &datagram);
                assert_eq!(answer, expected.map_or(u32::MAX, u32::from), "{datagram:02x?}");
                match expected {
                    Some(_) => steered += 1,
                    None => left += 1,
                }
            }
            assert!(steered > 200 && left > 200, "{steered} and {left}");
        }
    }
}

/// The kernel's bounds: 4096 instructions, jumps inside, memory of sixteen words, an end.
#[test]
fn the_kernel_can_take_the_program() {
    for program in programs(64, &[7; 16]) {
        let code = program.code();
        assert!(code.len() < 512, "{}", code.len());
        for (at, instruction) in code.iter().enumerate() {
            match instruction.code {
                JGE | JSET => {
                    let furthest = usize::from(instruction.jt.max(instruction.jf));
                    assert!(at + 1 + furthest < code.len());
                }
                JA => assert!(at + 1 + (instruction.k as usize) < code.len()),
                LD_CELL | LDX_CELL | ST | STX => assert!(instruction.k < 16),
                _ => {}
            }
        }
        assert_eq!(code.last().unwrap().code, RET_A);
    }
}

/// With both halves of the key the same it is HalfSipHash-1-3 as others have it: the value is from
/// the self-test of the Linux kernel (hsiphash on 32 bits, seven bytes).
#[test]
fn the_hash_is_half_sip_hash() {
    let key = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];
    assert_eq!(keyed_hash(&[0, 1, 2, 3, 4, 5, 6], &key), 0x9d38_d9d6);
}

#[test]
fn every_shard_can_be_named_with_every_head() {
    let mut random = Random(0xfeed);
    for shards in [1, 3, 8, 100, 255, 256] {
        let key = random.bytes();
        for _ in 0..300 {
            let (head, pick) = (random.bytes::<7>(), random.bytes::<1>()[0]);
            let shard = u16::try_from(random.below(u64::from(shards))).unwrap();
            for naming in [CidNaming::Keyed, CidNaming::Plain] {
                let program = Program::new(naming, shards, &key);
                let mut cid = [0; 8];
                cid[..7].copy_from_slice(&head);
                cid[7] = pick;
                program.name_shard(shard, &mut cid);
                assert_eq!(program.shard_of_cid(&cid), shard);
            }
        }
    }
}

/// Ids of one shard look like those of another: no byte of them leans anywhere.
#[test]
fn an_id_does_not_show_its_shard() {
    let mut random = Random(0xbead);
    let key = random.bytes();
    let mut seen = [0u32; 256];
    for _ in 0..25_600 {
        let (head, pick) = (random.bytes::<7>(), random.bytes::<1>()[0]);
        seen[usize::from(keyed_last_byte(&head, &key, (2, 4), pick))] += 1;
    }
    // 100 each are expected; with a deviation of 10, six of it are beyond chance.
    assert!(seen.iter().all(|count| (40..160).contains(count)), "{seen:?}");
}

#[test]
fn what_names_no_shard_is_left_to_the_kernel() {
    let key = [3; 16];
    for program in programs(4, &key) {
        for datagram in [&[][..], &[0x40], &[0xff; 13], &[0; 8], &[0x80, 0, 0, 0, 1, 7, 9, 9]] {
            assert_eq!(program.shard(datagram), None);
            assert_eq!(interpret(&program.code(), datagram), u32::MAX);
        }
    }
    let mut initial = vec![0xc0, 0, 0, 0, 1, 8];
    initial.resize(40, 5);
    let [_, keyed, hash_initial] = programs(4, &key);
    assert_eq!(hash_initial.shard(&initial), None);
    assert!(keyed.shard(&initial).is_some());
    initial[0] = 0xe0;
    let handshake = hash_initial.shard(&initial);
    assert_eq!(handshake, keyed.shard(&initial));
    assert!(handshake.is_some());
}

#[test]
fn no_key_is_printed() {
    let text = format!("{:?}", Program::new(CidNaming::Keyed, 2, &[0xab; 16]));
    assert!(!text.contains("171") && !text.contains("ab,"), "{text}");
}
