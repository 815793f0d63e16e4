// A picture that can be focused by a click and passes keys on to Python (anywidget).
export default {
  render({ model, el }) {
    const img = el.appendChild(document.createElement('img'))
    let busy = false
    let waiting = null
    let url

    el.tabIndex = 0
    el.classList.add('dreamer4-screen')
    el.dataset.lmSuppressShortcuts = 'true' // else JupyterLab takes keys for its own commands

    function send(key) {
      busy = true
      model.send({ key })
    }

    function draw() {
      busy = false
      if (waiting) send(waiting)
      waiting = null
      URL.revokeObjectURL(url)
      url = URL.createObjectURL(new Blob([model.get('png')], { type: 'image/png' }))
      img.src = url
    }

    el.addEventListener('keydown', event => {
      const isShortcut = event.ctrlKey || event.metaKey || event.altKey
      if (isShortcut || !model.get('bound_keys').includes(event.key)) return
      event.preventDefault()
      event.stopPropagation()
      if (!busy) send(event.key)
      else if (!event.repeat) waiting = event.key // the last one pressed; repeats are dropped
    })

    model.on('change:shown', draw)
    draw()
  },
}
