# The short form. Everything else has defaults that are right for most.
resource "lockstep_pair" "data" {
  name   = "data"
  source = { host = "nfs01", path = "/data" }
  backup = { host = "backup", path = "/backup/nfs01" }
}

# A pair with a password of one's own, and limits of one's own.
variable "rsync_password" {
  type      = string
  ephemeral = true
}

resource "lockstep_pair" "media" {
  name   = "media"
  source = { host = "nfs01", path = "/srv/media" }
  backup = { host = "backup", path = "/backup/media" }

  exclude = ["*.tmp", ".cache/"]
  delete = {
    max_files   = 200 # a deletion over both limits waits for `lockstep approve media`
    max_percent = 5
  }
  transfer = {
    compress        = "zstd"
    bandwidth_limit = "50m"
  }

  password_wo         = var.rsync_password
  password_wo_version = 1 # change it to change the password
}
