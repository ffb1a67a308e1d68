terraform {
  required_version = ">= 1.11" # write-only arguments; OpenTofu >= 1.11
  required_providers {
    lockstep = { source = "lockstep-sync/lockstep" }
  }
}

variable "ssh_key" {
  type      = string
  ephemeral = true # neither in state nor in plan files
}

variable "sudo_password" {
  type      = string
  ephemeral = true
}

provider "lockstep" {
  ssh = { # defaults for every host
    user        = "ops"
    private_key = var.ssh_key # or private_key_file, or agent = true, or nothing: as ssh does
    become      = { password = var.sudo_password }
  }
  hosts = {
    nfs01 = {
      address  = "172.16.1.31"
      host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMSkz4M9KNv2kNMF2BDnOTuGVGC1rRVtg0FdHr6cZ6tv"
    }
    backup = {
      address = "172.16.1.41"
      jump    = ["bastion"]
    }
    bastion = {
      address = "bastion.example.net"
      user    = "jump"
    }
  }
}
