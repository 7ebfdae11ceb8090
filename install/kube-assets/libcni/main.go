// SPDX-License-Identifier: Apache-2.0

// Runs one command of a configuration list as container runtimes do, by the library that they have
// it from, and prints the result or the error as JSON.
//
// Usage: libcni LIST PLUGINS CACHE COMMAND [CONTAINER NETNS INTERFACE [K=V;...]]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type said struct {
	Version string
	Result  types.Result `json:",omitempty"`
	Code    uint         `json:",omitempty"`
	Error   string       `json:",omitempty"`
}

func attachment(words []string) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{}
	if len(words) < 3 {
		return conf
	}
	conf.ContainerID, conf.NetNS, conf.IfName = words[0], words[1], words[2]
	for _, pair := range strings.Split(strings.Join(words[3:], ""), ";") {
		if key, value, found := strings.Cut(pair, "="); found {
			conf.Args = append(conf.Args, [2]string{key, value})
		}
	}
	return conf
}

func run(list *libcni.NetworkConfigList, plugins, cache, command string, words []string) (types.Result, error) {
	ctx, conf := context.Background(), attachment(words)
	cni := libcni.NewCNIConfigWithCacheDir([]string{plugins}, cache, nil)
	switch command {
	case "ADD":
		return cni.AddNetworkList(ctx, list, conf)
	case "CHECK":
		return nil, cni.CheckNetworkList(ctx, list, conf)
	case "DEL":
		return nil, cni.DelNetworkList(ctx, list, conf)
	case "STATUS":
		return nil, cni.GetStatusNetworkList(ctx, list)
	case "GC":
		valid := []types.GCAttachment{}
		if conf.ContainerID != "" {
			valid = append(valid, types.GCAttachment{ContainerID: conf.ContainerID, IfName: conf.IfName})
		}
		return nil, cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	case "VERSION":
		_, err := cni.ValidateNetworkList(ctx, list)
		return nil, err
	}
	return nil, fmt.Errorf("no command %s", command)
}

func main() {
	list, err := libcni.ConfListFromFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	answer := said{Version: list.CNIVersion}
	answer.Result, err = run(list, os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	if err != nil {
		answer.Error = err.Error()
		var failure *types.Error
		if errors.As(err, &failure) {
			answer.Code = failure.Code
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
