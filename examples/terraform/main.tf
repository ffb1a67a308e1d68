# SPDX-License-Identifier: Apache-2.0

# Two hosts with sshd, systemd, rsync and sudo become a pair:
#
#     nfs01 172.16.1.31:/data  →  backup 172.16.1.41:/backup/nfs01

terraform {
  required_version = ">= 1.11"
  required_providers {
    lockstep = { source = "lockstep-sync/lockstep" }
  }
}

variable "private_key_file" {
  description = "Key to log in with. Without one, the keys of ~/.ssh/config, the agent and ~/.ssh are tried."
  type        = string
  default     = null
}

# Hosts are reached as your own ssh reaches them: ~/.ssh/config and ~/.ssh/known_hosts count.
provider "lockstep" {
  ssh = {
    user             = "ops" # may use sudo; or root
    private_key_file = var.private_key_file
  }
  hosts = {
    nfs01  = { address = "172.16.1.31" }
    backup = { address = "172.16.1.41" }
  }
}

resource "lockstep_pair" "data" {
  name = "data"

  source = {
    host    = "nfs01"
    path    = "/data"
    address = "172.16.1.31" # what the backup host sees, and the only one it lets in
  }
  backup = {
    host    = "backup"
    path    = "/backup/nfs01"
    address = "172.16.1.41" # what the source host dials
  }
}
