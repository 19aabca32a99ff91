"""What a process is denied before it becomes a gateway: for `subprocess`'s `preexec_fn`."""

import ctypes
import resource

# From linux/prctl.h, linux/seccomp.h and linux/bpf_common.h.
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x0005_0000
SECCOMP_RET_ALLOW = 0x7FFF_0000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06

# The same on every architecture.
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction))]


def deny_syscall(number, error):
    """The system call fails with this error, as under a seccomp profile that does not allow it."""
    instructions = (_Instruction * 4)(
        _Instruction(LOAD_WORD, 0, 0, 0),
        _Instruction(JUMP_IF_EQUAL, 0, 1, number),
        _Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
        _Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    program = _Program(len(instructions), instructions)
    libc = ctypes.CDLL(None, use_errno=True)

    def apply():
        for arguments in (
            (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
        ):
            if libc.prctl(*arguments) != 0:
                raise OSError(ctypes.get_errno(), "prctl")

    return apply


def limit_open_files(soft, hard):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
