"""Base images, and the disks of VMs on them.

An image is `NAME.qcow2`, which is never written again, with its metadata in `NAME.yaml`. An image exists if
its .qcow2 file does. The disk of a VM is an overlay whose backing file is the image: qemu-img(1).
"""
