"""Which system calls a server in a container may not make (seccomp(2)).

What a server and its application need cannot be listed; what no server needs can. Refused is what
changes the host or its kernel, looks into other processes, or opens parts of the kernel that have
been the way out of containers: new namespaces, mounts, modules, BPF, io_uring, userfaultfd, keys.
Most of it needs a capability that the container has not; this is the second lock. CRIU suspends the
filter for what it does in a process (PTRACE_O_SUSPEND_SECCOMP, ptrace(2)), and restores it.
"""

from __future__ import annotations

from typing import Any

_REFUSED = (
    # the host
    *("acct", "adjtimex", "clock_adjtime", "clock_settime", "ioperm", "iopl", "quotactl"),
    *("quotactl_fd", "reboot", "sethostname", "setdomainname", "settimeofday", "swapoff", "swapon"),
    *("syslog", "vhangup"),
    # its kernel
    *("bpf", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load"),
    *("perf_event_open", "io_uring_enter", "io_uring_register", "io_uring_setup", "userfaultfd"),
    *("add_key", "keyctl", "request_key", "lookup_dcookie", "uselib", "ustat", "sysfs"),
    # file systems
    *("chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount"),
    *("open_by_handle_at", "open_tree", "pivot_root", "umount2", "fanotify_init"),
    # other processes
    *("kcmp", "move_pages", "pidfd_getfd", "process_madvise", "process_vm_readv"),
    *("process_vm_writev", "ptrace"),
    # namespaces
    *("setns", "unshare"),
)

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (clone(2))."""

_EPERM, _ENOSYS = 1, 38
_BITS = 32


def make_filter() -> dict[str, Any]:
    """Return the filter, by the OCI runtime specification."""
    namespaces = [
        {"index": 0, "value": 1 << bit, "valueTwo": 1 << bit, "op": "SCMP_CMP_MASKED_EQ"}
        for bit in range(_BITS)
        if _NEW_NAMESPACES >> bit & 1
    ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [
            *("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
            *("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
        ],
        "syscalls": [
            {"names": list(_REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
            # Its flags are in memory, where no filter can look; libraries go on with clone then.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            *(
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": _EPERM,
                    "args": [flag],
                }
                for flag in namespaces
            ),
        ],
    }
