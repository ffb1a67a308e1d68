// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

var colours = []string{"#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5d576b"}

type svg struct{ strings.Builder }

func newSVG(w, h int) *svg {
	s := &svg{}
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n", w, h, w, h)
	return s
}

func (s *svg) text(x, y float64, anchor, text string) {
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, strings.NewReplacer("&", "&amp;", "<", "&lt;").Replace(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, stroke string) {
	fmt.Fprintf(s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, stroke)
}

// plotLatency draws, for each workload with latencies, the share of changes that had arrived after a time, on a log scale.
func plotLatency(samples map[string][]time.Duration) string {
	byWork := map[string][]string{}
	for k := range samples {
		work, _, _ := strings.Cut(k, "/")
		byWork[work] = append(byWork[work], k)
	}
	var works []string
	for w := range byWork {
		works = append(works, w)
	}
	slices.Sort(works)
	const panelW, panelH, left, top = 420, 260, 50, 40
	s := newSVG(2*panelW, (len(works)+1)/2*panelH+20)
	const lo, hi = -3.0, 2.0 // 1 ms to 100 s
	for i, w := range works {
		x0, y0 := float64(i%2*panelW+left), float64(i/2*panelH+top)
		width, height := float64(panelW-left-20), float64(panelH-top-40)
		s.text(x0+width/2, y0-12, "middle", w+": share of changes on the backup, by time since the change")
		for e := lo; e <= hi; e++ {
			x := x0 + (e-lo)/(hi-lo)*width
			s.line(x, y0, x, y0+height, "#ddd")
			s.text(x, y0+height+16, "middle", map[float64]string{-3: "1 ms", -2: "10 ms", -1: "100 ms", 0: "1 s", 1: "10 s", 2: "100 s"}[e])
		}
		for _, f := range []float64{0, 0.5, 0.99} {
			y := y0 + (1-f)*height
			s.line(x0, y, x0+width, y, "#ddd")
			s.text(x0-6, y+4, "end", fmt.Sprintf("%.0f %%", 100*f))
		}
		slices.Sort(byWork[w])
		for j, k := range byWork[w] {
			l := slices.Sorted(slices.Values(samples[k]))
			var points []string
			for q := 0; q <= 200 && len(l) > 0; q++ {
				f := float64(q) / 200
				v := math.Log10(max(quantile(l, f).Seconds(), 1e-3))
				points = append(points, fmt.Sprintf("%.1f,%.1f", x0+(min(v, hi)-lo)/(hi-lo)*width, y0+(1-f)*height))
			}
			c := colours[j%len(colours)]
			fmt.Fprintf(s, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>`+"\n", c, strings.Join(points, " "))
			y := y0 + 16 + float64(j)*16
			s.line(x0+8, y-4, x0+28, y-4, c)
			s.text(x0+32, y, "start", strings.TrimPrefix(k, w+"/"))
		}
	}
	s.WriteString("</svg>\n")
	return s.String()
}

// plotConvergence draws bars of the time from the last write to equal trees, medians over the rounds.
func plotConvergence(rounds []round) string {
	type bar struct {
		name  string
		value float64
	}
	var bars []bar
	for _, k := range []string{"W3/P", "W3/lockstep/converge", "W3/lsyncd/converge", "W4/lockstep/converge", "W4/lsyncd/converge",
		"W7/P", "W7/lockstep/converge", "W7/lsyncd/converge", "W7/delete", "W7/lockstep/rm", "W7/lsyncd/rm"} {
		var l []float64
		for _, r := range rounds {
			if v, ok := r[k]; ok {
				l = append(l, v)
			}
		}
		if len(l) > 0 {
			bars = append(bars, bar{k, median(l)})
		}
	}
	const row, left, width = 22, 190, 600
	s := newSVG(left+width+80, row*len(bars)+50)
	s.text(left, 20, "start", "seconds from the last write to equal trees (log scale from 10 ms)")
	for i, b := range bars {
		y := float64(40 + i*row)
		w := max((math.Log10(max(b.value, 0.01))+2)/4*width, 2)
		c := colours[0]
		if !strings.Contains(b.name, "lockstep") {
			c = "#aaa"
		}
		s.text(left-8, y+12, "end", b.name)
		fmt.Fprintf(s, `<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y, w, row-6, c)
		s.text(left+w+6, y+12, "start", fmt.Sprintf("%.2f s", b.value))
	}
	s.WriteString("</svg>\n")
	return s.String()
}
