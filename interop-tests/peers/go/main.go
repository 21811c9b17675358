// A go-libp2p and boxo node that a test drives by JSON lines; the protocol is in ../README.md.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// A block of 4 MiB in base64, and what stands around it.
const maxLine = 8 << 20

// Everything that goes to stdout, one line at a time.
type output struct {
	mutex sync.Mutex
	lines *json.Encoder
}

func (out *output) write(line map[string]any) {
	out.mutex.Lock()
	defer out.mutex.Unlock()
	if err := out.lines.Encode(line); err != nil {
		os.Exit(1)
	}
}

func main() {
	out := &output{lines: json.NewEncoder(os.Stdout)}
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(make([]byte, 64<<10), maxLine)
	var peer *node
	for input.Scan() {
		var command command
		if err := json.Unmarshal(input.Bytes(), &command); err != nil {
			fmt.Fprintf(os.Stderr, "no command: %v\n", err)
			os.Exit(2)
		}
		// The first command makes the node that the others need; those may take long and run beside each other.
		if command.Name == "start" {
			var result any
			var err error
			peer, result, err = start(&command, out)
			out.answer(&command, result, err)
			continue
		}
		if peer == nil {
			out.answer(&command, nil, fmt.Errorf("the first command is start"))
			continue
		}
		go func() {
			result, err := peer.run(&command)
			out.answer(&command, result, err)
		}()
	}
	// A closed stdin ends the peer; so does the process of the test.
}

func (out *output) answer(command *command, result any, err error) {
	line := map[string]any{"id": command.ID}
	if err != nil {
		line["error"] = err.Error()
	} else {
		line["ok"] = result
	}
	out.write(line)
}
