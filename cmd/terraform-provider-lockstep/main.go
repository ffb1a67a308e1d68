// SPDX-License-Identifier: Apache-2.0

// Terraform-provider-lockstep is the Terraform provider lockstep-sync/lockstep. Terraform starts it.
package main

import (
	"context"
	"flag"
	"log"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"

	"github.com/lockstep-sync/lockstep/provider"
)

// version is set by the linker.
var version = "dev"

func main() {
	debug := flag.Bool("debug", false, "serve for a debugger, and print what Terraform needs to attach")
	flag.Parse()
	err := providerserver.Serve(context.Background(), provider.New(version), providerserver.ServeOpts{
		Address: "registry.terraform.io/lockstep-sync/lockstep",
		Debug:   *debug,
	})
	if err != nil {
		log.Fatal(err)
	}
}
