data "lockstep_host" "backup" {
  host = "backup"
}

output "backup_host_key" {
  value = data.lockstep_host.backup.host_key
}
