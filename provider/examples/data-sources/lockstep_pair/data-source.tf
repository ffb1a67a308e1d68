# Every plan and apply says whether the backup is up to date.
check "data_is_replicated" {
  data "lockstep_pair" "data" {
    name = "data"
    host = "nfs01"
  }
  assert {
    condition     = contains(["in step", "behind"], data.lockstep_pair.data.state) && coalesce(data.lockstep_pair.data.lag_seconds, 86400) < 60
    error_message = "nfs01:/data is ${data.lockstep_pair.data.state}: ${data.lockstep_pair.data.reason}"
  }
}
