// A picture that can be focused by a click and passes keys on to Python (anywidget).
const AHEAD = 2 // keys that may be on their way to Python
const REPEAT = 1000 / 30 // milliseconds between two steps of a held key
const SCALE = 4 // each pixel becomes so many across and down

export default {
  render({ model, el }) {
    const canvas = el.appendChild(document.createElement('canvas'))
    const context = canvas.getContext('2d')
    let onTheWay = 0 // keys that no picture has answered yet
    let waiting = null // the newest key that has still to be sent
    let held = null // code and timer of the key that is held down
    let newest = null // picture for the next animation frame
    let drawn = 0 // number of the picture that is seen

    el.tabIndex = 0
    el.classList.add('dreamer4-screen')
    el.dataset.lmSuppressShortcuts = 'true' // else JupyterLab takes keys for its own commands

    function send(key) {
      onTheWay += 1
      model.send({ key, drawn })
    }

    function press(key) {
      if (onTheWay < AHEAD) send(key)
      else waiting = key
    }

    function release() {
      if (!held) return
      clearInterval(held.timer)
      held = null
      model.send({ drawn })
    }

    function hold(key, code) {
      const timer = setInterval(() => {
        if (onTheWay < AHEAD) send(key)
      }, REPEAT)
      held = { code, timer }
    }

    function draw() {
      const { picture, width, height, pixels } = newest
      newest = null
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width
        canvas.height = height
        canvas.style.width = `${width * SCALE}px`
        canvas.style.height = `${height * SCALE}px`
      }
      context.putImageData(new ImageData(pixels, width, height), 0, 0)
      drawn = picture
      el.dataset.drawn = picture
      if (!held || onTheWay >= AHEAD) model.send({ drawn }) // else the next key says it
    }

    function receive(message, buffers) {
      onTheWay = Math.max(0, onTheWay - message.answered)
      if (waiting) send(waiting)
      waiting = null
      if (!newest) requestAnimationFrame(draw)
      const { buffer, byteOffset, byteLength } = buffers[0]
      const pixels = new Uint8ClampedArray(buffer, byteOffset, byteLength)
      newest = { ...message, pixels } // a picture that was not drawn yet is dropped
    }

    el.addEventListener('keydown', event => {
      const isShortcut = event.ctrlKey || event.metaKey || event.altKey
      if (isShortcut || !model.get('bound_keys').includes(event.key)) return
      event.preventDefault()
      event.stopPropagation()
      if (event.repeat) {
        const repeats = model.get('held_keys').includes(event.key)
        if (repeats && held?.code !== event.code) {
          release()
          hold(event.key, event.code)
        }
        return
      }
      release()
      press(event.key)
    })
    el.addEventListener('keyup', event => {
      if (event.code === held?.code) release()
    })
    el.addEventListener('blur', release)

    model.on('msg:custom', receive)
    model.send({ is_new: true })
    return () => {
      release()
      model.off('msg:custom', receive)
    }
  },
}
