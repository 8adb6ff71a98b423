// Plays many cameras by whep.js, some at a time, and tells of each what came of
// it: window.fanlightCompat, evaluated in a page in Chromium, and loaded by one
// in Firefox.
(() => {
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  // How loud a stream is now, 0 to 1. What Chromium's getStats says of that is 0
  // without a device.
  const listen = (context, stream) => {
    if (!context || stream.getAudioTracks().length === 0) return () => 0;
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    return () => {
      analyser.getFloatTimeDomainData(samples);
      return samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
    };
  };

  const play = async (context, { camera, endpoint, enough, sounds }, patience) => {
    let whep;
    const result = { camera, video: 0, audio: 0 };
    try {
      whep = await window.fanlightWHEP({ endpoint });
    } catch (error) {
      return { ...result, error: String(error) };
    }
    const loudness = listen(context, whep.stream);
    const deadline = performance.now() + patience;
    let decoded = 0;
    for (;;) {
      const { state, video, audio } = await whep.stats();
      Object.assign(result, { state, codec: video.codec, video: video.framesDecoded ?? 0, keys: video.keyFramesDecoded, lost: video.packetsLost });
      // One for each look at which there was sound: a tone that is 1/8 loud, or,
      // where nobody listens, samples that were decoded and not made up.
      const samples = (audio.totalSamplesReceived ?? 0) - (audio.concealedSamples ?? 0);
      if (context ? loudness() > 0.01 : samples > decoded) result.audio++;
      decoded = samples;
      result.sound = audio.codec;
      if ((result.video >= enough && result.audio >= sounds) || performance.now() > deadline) break;
      await pause(100);
    }
    await whep.leave().catch((error) => (result.error = String(error)));
    return result;
  };

  window.fanlightCompat = async ({ cameras, atOnce, patience, listens }) => {
    const context = listens ? new AudioContext() : null;
    const waiting = [...cameras];
    const results = [];
    const work = async () => {
      for (let next = waiting.shift(); next; next = waiting.shift()) results.push(await play(context, next, patience));
    };
    await Promise.all(Array.from({ length: atOnce }, work));
    await context?.close();
    return results;
  };
})();
