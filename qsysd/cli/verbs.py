"""The verbs: where each is implemented, its line of help, and the groups in which --help shows them."""

from __future__ import annotations

# verb → (module, attribute, one line of help)
VERBS = {
    "create": ("vm", "create", "Create a VM and start it."),
    "edit": ("vm", "edit", "Change the definition of a VM."),
    "render": ("vm", "render", "Write the files that follow from definitions, or check them."),
    "delete": ("vm", "delete", "Delete VMs with their disks."),
    "enable": ("control", "enable", "Start VMs at host boot."),
    "disable": ("control", "disable", "Do not start VMs at host boot."),
    "start": ("control", "start", "Start VMs."),
    "stop": ("control", "stop", "Shut VMs down gracefully."),
    "restart": ("control", "restart", "Stop VMs gracefully and start them again."),
    "kill": ("control", "kill", "Switch VMs off without a shutdown of the guest."),
    "reset": ("control", "reset", "Press the reset button of VMs."),
    "pause": ("control", "pause", "Stop the processors of VMs."),
    "resume": ("control", "resume", "Let the processors of paused VMs run again."),
    "list": ("inspect", "list_vms", "Show the VMs of this host."),
    "status": ("inspect", "status", "Show a VM as systemd and QEMU see it."),
    "show": ("inspect", "show", "Show the definition of a VM."),
    "logs": ("logs", "logs", "Show the journal of the unit and the guest's console."),
    "ip": ("access", "ip", "Show the address of a VM."),
    "ssh": ("access", "ssh", "Log in to a guest, or run a command in it."),
    "console": ("access", "console", "Open the serial console of a VM."),
    "image": ("image", "image", "Base images: build, import, list, info, rm."),
    "setup": ("host", "setup", "Prepare this host; safe to repeat."),
    "doctor": ("host", "doctor", "Check what this host needs, and name the remedies."),
    "recover": ("host", "recover", "Repair what killed commands left."),
    "completion": ("host", "completion", "Print the completion script for a shell."),
    "help": ("host", "help_verb", "Show the help of qsysd or of a verb."),
}

GROUPS = {
    "Definitions": ("create", "edit", "render", "delete", "enable", "disable"),
    "Power": ("start", "stop", "restart", "kill", "reset", "pause", "resume"),
    "Display and access": ("list", "status", "show", "logs", "ip", "ssh", "console"),
    "Images": ("image",),
    "Host": ("setup", "doctor", "recover", "completion", "help"),
}

ALIASES = {"ls": "list", "rm": "delete"}

# Never suggested for a word that is only spelled like one of them.
DESTRUCTIVE = ("delete", "kill", "reset", "rm")
